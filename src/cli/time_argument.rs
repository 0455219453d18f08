//! A point in time on the command line.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};

/// The smallest count of digits that is taken for nanoseconds: fewer are days in 1970, and in
/// truth seconds or milliseconds by mistake.
const DIGITS_MIN: usize = 16;

const FORMS: &str = "write it as 2024-01-15T14:30:00Z, as 2024-01-15 (its first instant, UTC), or in \
                     nanoseconds since 1970";

/// Nanoseconds since the epoch. Whatever the zone of this machine, a time without an offset is UTC.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        if digits.len() < DIGITS_MIN && text != "0" {
            return Err(format!(
                "{text} is too short to be nanoseconds since 1970; {FORMS}"
            ));
        }
        return text.parse().map_err(|_| out_of_range());
    }
    let time = DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .or_else(|_| text.parse::<NaiveDateTime>().map(|time| time.and_utc()))
        .or_else(|_| {
            text.parse::<NaiveDate>()
                .map(|date| date.and_time(NaiveTime::MIN).and_utc())
        })
        .map_err(|_| format!("this is not a time; {FORMS}"))?;
    time.timestamp_nanos_opt().ok_or_else(out_of_range)
}

fn out_of_range() -> String {
    "nanoseconds in 64 bits reach from 1677 to 2262 only".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_time_is_read_as_utc() {
        let two_pm = 1_705_327_200_000_000_000;
        for (text, time_ns) in [
            ("2024-01-15T14:00:00Z", two_pm),
            ("2024-01-15T16:00:00+02:00", two_pm),
            ("2024-01-15t14:00:00.000000001z", two_pm + 1),
            ("2024-01-15T14:00:00", two_pm),
            ("2024-01-15", two_pm - 14 * 3_600_000_000_000),
            ("1705327200000000007", two_pm + 7),
            ("-1705327200000000007", -two_pm - 7),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(time_ns), "{text}");
        }
    }

    #[test]
    fn what_may_be_meant_otherwise_is_refused() {
        for text in [
            "",
            "-",
            "1705327200",
            "1705327200000",
            "20240115",
            "14:00",
            "2024-13-01",
            "2024-02-30T00:00:00Z",
            "yesterday",
            "99999999999999999999",
            "2300-01-01",
        ] {
            assert!(parse(text).is_err(), "{text} was accepted");
        }
    }
}
