//! Fields of a JSON object, read as leniently as the programs and scripts that wrote it need.

use serde_json::{Map, Value};

pub(super) fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

/// A text field; empty when absent, as in entries of older clients.
pub(super) fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{name} is not a string")),
    }
}

/// A whole number of at least 0; 0 when absent. Floats come from scripts that re-encode.
pub(super) fn count(object: &Map<String, Value>, name: &str) -> Result<u64, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value
            .as_u64()
            .or_else(|| whole(value).and_then(|number| u64::try_from(number).ok()))
            .ok_or_else(|| format!("{name} is not a whole number of at least 0")),
    }
}

fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (number.fract() == 0.0 && number.abs() < 9.2e18).then_some(number as i64)
}

pub(super) fn time_ns(object: &Map<String, Value>, name: &str) -> Result<i64, String> {
    let twin = format!("str_{name}");
    match string(object, &twin)? {
        "" => match object.get(name) {
            None | Some(Value::Null) => Ok(0),
            Some(value) => whole(value).ok_or_else(|| format!("{name} is not a whole number")),
        },
        digits => digits
            .parse()
            .map_err(|_| format!("{twin} is not a whole number of 64 bits")),
    }
}

pub(super) fn due_s(object: &Map<String, Value>) -> Result<i64, String> {
    object
        .get("time_s")
        .and_then(whole)
        .ok_or_else(|| "it has no time_s".to_owned())
}

/// A count of ours in an item; anything else that stands there counts as 0.
pub(super) fn small_count(object: &Map<String, Value>, name: &str) -> u32 {
    object
        .get(name)
        .and_then(whole)
        .map_or(0, |number| u32::try_from(number.max(0)).unwrap_or(u32::MAX))
}

/// Scripts that re-encode print an empty array as `{}`.
pub(super) fn paths(object: &Map<String, Value>) -> Result<&[Value], String> {
    match object.get("paths") {
        Some(Value::Array(paths)) => Ok(paths),
        Some(Value::Object(empty)) if empty.is_empty() => Ok(&[]),
        _ => Err("it has no list of paths".to_owned()),
    }
}

pub(super) fn take_object(
    object: &mut Map<String, Value>,
    name: &str,
) -> Result<Map<String, Value>, String> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(values)) => Ok(values),
        Some(Value::Array(values)) if values.is_empty() => Ok(Map::new()),
        Some(_) => Err(format!("{name} is not an object")),
    }
}
