//! The rules of planning, levels and layers, as the scripts take them.

use serde_json::{Map, Value, json};

use crate::{catalog::Policy, model::LayerName};

/// What planning needs to know, as the scripts take it.
#[derive(Debug)]
pub(super) struct PlanningRules {
    pub(super) levels_json: String,
    pub(super) layers_json: String,
}

impl PlanningRules {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            levels_json: levels_to_json(policy),
            layers_json: layers_to_json(policy),
        }
    }
}

/// `[[timeout_sec, max_size_bytes, iteration], …]`.
fn levels_to_json(policy: &Policy) -> String {
    let levels: Vec<Value> = policy
        .levels
        .iter()
        .map(|level| {
            // Up: a plan must not close before its time.
            let timeout_s = level.timeout.as_secs() + u64::from(level.timeout.subsec_nanos() > 0);
            json!([timeout_s, level.max_size_bytes, level.iteration.0])
        })
        .collect();
    Value::Array(levels).to_string()
}

/// Name → layer, with the entry `""` for files of clients that name none.
fn layers_to_json(policy: &Policy) -> String {
    let mut layers = Map::new();
    layers.insert(String::new(), layer_to_json("", "", "", 0, ""));
    for layer in &policy.layers {
        let ttl = layer.ttl.unwrap_or_default();
        let ttl_s = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let next = layer.next.as_ref().map_or("", LayerName::as_str);
        let name = layer.name.as_str();
        layers.insert(
            name.to_owned(),
            layer_to_json(&layer.url, name, &layer.kind, ttl_s, next),
        );
    }
    Value::Object(layers).to_string()
}

fn layer_to_json(url: &str, name: &str, kind: &str, ttl_s: u64, next: &str) -> Value {
    json!({"url": url, "name": name, "type": kind, "ttl_sec": ttl_s, "layer_to": next})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        catalog::{LayerRule, Level},
        model::Iteration,
    };

    #[test]
    fn the_policy_goes_out_as_the_contract_says() {
        let policy = Policy {
            levels: vec![Level {
                iteration: Iteration(1),
                timeout: Duration::from_millis(9_500),
                max_size_bytes: 10_485_760,
            }],
            layers: vec![LayerRule {
                name: LayerName::parse("l1").unwrap(),
                kind: "fs".to_owned(),
                url: "file:///data".to_owned(),
                ttl: Some(Duration::from_mins(1)),
                next: Some(LayerName::parse("l2").unwrap()),
            }],
            writers: None,
        };
        assert_eq!(levels_to_json(&policy), "[[10,10485760,1]]");
        let layers: Value = serde_json::from_str(&layers_to_json(&policy)).unwrap();
        assert_eq!(
            layers["l1"],
            json!({"url":"file:///data","name":"l1","type":"fs","ttl_sec":60,"layer_to":"l2"})
        );
        assert_eq!(layers[""]["ttl_sec"], 0);
    }
}
