//! Durations and sizes as people write them: `"10s"`, `"100 MiB"`. A number without a unit is refused.

use std::time::Duration;

use bytesize::ByteSize;

const SIZE_UNITS: [(u64, &str); 6] = [
    (1 << 60, "EiB"),
    (1 << 50, "PiB"),
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
];

/// Longest piece of a bad value that a message repeats, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// A value for a message: quoted, escaped, cut.
pub(super) fn quote(text: &str) -> String {
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return format!("{text:?}");
    }
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{:?}", cut + "…")
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    if is_number(trimmed) {
        return Err(format!(
            "{} has no unit; write \"{trimmed}s\"",
            quote(trimmed)
        ));
    }
    // "M" is a month to the parser and a minute to almost everybody else.
    if trimmed
        .split(|c: char| !c.is_alphabetic())
        .any(|unit| unit == "M")
    {
        return Err(format!(
            "{} would mean months; write {}",
            quote(trimmed),
            quote(&trimmed.replace('M', "min"))
        ));
    }
    humantime::parse_duration(trimmed).map_err(|_| {
        format!(
            "{} is not a duration; write a number and a unit, such as \"30s\", \"5min\" or \"1h 30min\"",
            quote(text)
        )
    })
}

pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    if let Ok(bytes) = trimmed.parse::<u64>() {
        return Err(format!(
            "{} has no unit; write \"{}\"",
            quote(trimmed),
            suggest_size(bytes)
        ));
    }
    let number = trimmed
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .next()
        .unwrap_or_default();
    let unit = trimmed[number.len()..].trim();
    let prefix = unit.trim_end_matches(['i', 'I']);
    if is_number(number)
        && !unit.is_empty()
        && matches!(
            prefix.to_ascii_uppercase().as_str(),
            "K" | "M" | "G" | "T" | "P"
        )
    {
        let prefix = prefix.to_ascii_uppercase();
        return Err(format!(
            "{} does not say what is counted; write \"{number} {prefix}iB\" (steps of 1024) or \"{number} {prefix}B\" (steps of 1000)",
            quote(trimmed)
        ));
    }
    trimmed
        .parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| {
            format!(
                "{} is not a size; write a number and a unit, such as \"100 MiB\" or \"4 GiB\"",
                quote(text)
            )
        })
}

/// The shortest exact form that [`parse_duration`] reads back.
pub(super) fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let units = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit_nanos, unit) in units {
        if nanos.is_multiple_of(unit_nanos) {
            return format!("{}{unit}", nanos / unit_nanos);
        }
    }
    format!("{nanos}ns")
}

/// The shortest exact form that [`parse_size`] reads back.
pub(super) fn format_size(bytes: u64) -> String {
    for (unit_bytes, unit) in SIZE_UNITS {
        if bytes >= unit_bytes && bytes.is_multiple_of(unit_bytes) {
            return format!("{} {unit}", bytes / unit_bytes);
        }
    }
    format!("{bytes} B")
}

/// What a number of bytes without a unit was probably meant to be.
pub(super) fn suggest_size(number: u64) -> String {
    if number < 1024 {
        format!("{number} MiB")
    } else {
        format_size(number)
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration(" 1h 30min "), Ok(Duration::from_mins(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_size("100 MiB"), Ok(100 << 20));
        assert_eq!(parse_size("100MB"), Ok(100_000_000));
        assert_eq!(parse_size("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_size("7 B"), Ok(7));
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_the_fix() {
        assert_eq!(
            parse_duration("10"),
            Err(r#""10" has no unit; write "10s""#.to_owned())
        );
        assert_eq!(
            parse_size("104857600"),
            Err(r#""104857600" has no unit; write "100 MiB""#.to_owned())
        );
    }

    #[test]
    fn units_that_people_read_in_two_ways_are_refused() {
        assert_eq!(
            parse_duration("5M"),
            Err(r#""5M" would mean months; write "5min""#.to_owned())
        );
        assert!(parse_size("100M").unwrap_err().contains("100 MiB"));
        assert!(parse_size("100Mi").unwrap_err().contains("100 MiB"));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back_exactly(millis in 0u64..1 << 40, bytes in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
