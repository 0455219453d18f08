//! The heads of lists, read along with their names.
//!
//! Plain commands cost a server less than a script that reads for us, but what they read goes
//! over the wire, and a plan may have megabytes. So few lists are read at first, then as many as
//! a round trip may bring at the size seen so far (the server's order is random, large plans do
//! not stand together), and after a total the other lists are left to the script.

use super::{RedisCatalog, scripts::Waiting};
use crate::catalog::CatalogError;

/// Lists of the first round trip; each later one has at most twice as many as the one before.
const LISTS_MIN: usize = 8;
/// Lists of one round trip.
const LISTS_MAX: usize = 5000;
/// Items of one list. Most have fewer, which shows that these are all.
const ITEMS_MAX: usize = 4;
/// What one round trip should bring.
const ROUND_BYTES_MAX: usize = 2 << 20;
/// What is read in all, but for the last round trip.
const TOTAL_BYTES_MAX: usize = 64 << 20;

/// How much is read next.
#[derive(Debug)]
pub(super) struct Pace {
    lists_count: usize,
    bytes_left: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            lists_count: LISTS_MIN,
            bytes_left: TOTAL_BYTES_MAX,
        }
    }

    fn is_over(&self) -> bool {
        self.bytes_left == 0
    }

    fn has_read(&mut self, lists_count: usize, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        let fit = ROUND_BYTES_MAX.saturating_mul(lists_count) / bytes.max(1);
        self.lists_count = fit.clamp(1, (2 * self.lists_count).min(LISTS_MAX));
    }
}

impl RedisCatalog {
    /// What waits in each list: `None` when that takes more than a look at the head, because there
    /// are more items, or none, or one that does not say when it is due.
    pub(super) async fn read_heads(
        &self,
        context: &str,
        lists: &[&str],
        pace: &mut Pace,
    ) -> Result<Vec<Waiting>, CatalogError> {
        let mut seen = Vec::with_capacity(lists.len());
        while seen.len() < lists.len() && !pace.is_over() {
            let rest = &lists[seen.len()..];
            let part = &rest[..rest.len().min(pace.lists_count)];
            let mut pipeline = redis::pipe();
            for list in part {
                pipeline.cmd("LRANGE").arg(list).arg(0).arg(ITEMS_MAX - 1);
            }
            match self
                .connection
                .query_all::<Vec<Vec<Vec<u8>>>>(context, &pipeline)
                .await
            {
                Ok(heads) => {
                    pace.has_read(part.len(), heads.iter().flatten().map(Vec::len).sum());
                    seen.extend(heads.iter().map(|head| waiting(head)));
                }
                // One of them is no list any more: the script passes over it.
                Err(CatalogError::Refused { .. }) => {
                    seen.resize(seen.len() + part.len(), None);
                }
                Err(error) => return Err(error),
            }
        }
        seen.resize(lists.len(), None);
        Ok(seen)
    }
}

fn waiting(head: &[Vec<u8>]) -> Waiting {
    let soonest_s = head
        .iter()
        .map(|item| due_s_in(std::str::from_utf8(item).ok()?))
        .collect::<Option<Vec<i64>>>()?
        .into_iter()
        .min()?;
    (head.len() < ITEMS_MAX).then_some((soonest_s, head.len() as u64))
}

/// When an item is due, Unix seconds, found as the scripts find it: nothing else of it is read.
fn due_s_in(text: &str) -> Option<i64> {
    text.match_indices("\"time_s\"").find_map(|(at, name)| {
        let value = text[at + name.len()..]
            .trim_ascii_start()
            .strip_prefix(':')?;
        let value = value.trim_ascii_start();
        let end = value.find(|c: char| !c.is_ascii_digit())?;
        let is_whole =
            value[end..].starts_with(|c: char| c == ',' || c == '}' || c.is_ascii_whitespace());
        is_whole.then(|| value[..end].parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_list_is_known_by_its_head_if_each_item_says_when_it_is_due() {
        let head = |items: &[&str]| -> Vec<Vec<u8>> {
            items.iter().map(|item| item.as_bytes().to_vec()).collect()
        };
        let plan = r#"{"id":"x","time_s":17,"size":1,"paths":[]}"#;
        assert_eq!(waiting(&head(&[plan])), Some((17, 1)));
        assert_eq!(waiting(&head(&[])), None);
        let sooner = plan.replace("17", "16");
        assert_eq!(waiting(&head(&[plan, &sooner, plan])), Some((16, 3)));
        assert_eq!(waiting(&head(&[plan; ITEMS_MAX])), None);
        assert_eq!(waiting(&head(&[plan, r#"{"id":"x"}"#])), None);
        assert_eq!(waiting(&[b"\xff\"time_s\":17}".to_vec()]), None);
    }

    #[test]
    fn a_due_time_is_found_in_an_item_of_any_writer() {
        for text in [
            r#"{"id":"x","time_s":17,"size":1}"#,
            r#"{"paths":[], "time_s" : 17}"#,
            "{\"time_s\":\t17\n}",
            r#"{"time_s":null,"time_s":17}"#,
        ] {
            assert_eq!(due_s_in(text), Some(17), "{text}");
        }
        for text in [
            "",
            r#"{"id":"x"}"#,
            r#"{"time_s":-17}"#,
            r#"{"time_s":1.7e1}"#,
            r#"{"time_s":"17"}"#,
            r#"{"time_s":17"#,
            r#"{"time_s":99999999999999999999}"#,
        ] {
            assert_eq!(due_s_in(text), None, "{text}");
        }
    }

    #[test]
    fn round_trips_grow_while_plans_are_small_and_shrink_at_once_when_they_are_not() {
        let mut pace = Pace::new();
        let mut rounds = 0;
        while pace.lists_count < LISTS_MAX {
            pace.has_read(pace.lists_count, 200 * pace.lists_count);
            rounds += 1;
        }
        assert!(rounds <= 10, "{rounds}");
        pace.has_read(LISTS_MAX, LISTS_MAX * 10_000);
        assert_eq!(pace.lists_count, ROUND_BYTES_MAX / 10_000);
        pace.has_read(pace.lists_count, 100 << 20);
        assert!(pace.lists_count <= 5 && pace.is_over());
    }

    #[test]
    fn plans_larger_than_a_round_trip_are_read_one_by_one() {
        let mut pace = Pace::new();
        pace.has_read(LISTS_MIN, LISTS_MIN * (ROUND_BYTES_MAX + 1));
        assert_eq!(pace.lists_count, 1);
        pace.has_read(1, 0);
        assert_eq!(pace.lists_count, 2);
    }
}
