//! Text that must not be printed.

use std::fmt;

/// Text that must not be printed: a password, or a URL that may hold one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Secret {
    /// The text as a URL with `***` in the place of its password: safe to print.
    pub fn hidden_url(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return "***".to_owned();
        };
        // Even where it should not, a password may hold a raw '@' or '/': everything up to the last '@' counts as its own.
        let shown = match rest.rsplit_once('@') {
            Some((user_info, host)) => match user_info.split_once(':') {
                Some((user, _)) => format!("{user}:***@{host}"),
                None => format!("{user_info}@{host}"),
            },
            None => rest.to_owned(),
        };
        let Some((before, query)) = shown.split_once('?') else {
            return format!("{scheme}://{shown}");
        };
        // URLs of Unix sockets carry the password here.
        let query: Vec<String> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((key, _)) if key.starts_with("pass") => format!("{key}=***"),
                _ => pair.to_owned(),
            })
            .collect();
        format!("{scheme}://{before}?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("redis://host:6379/0", "redis://host:6379/0"),
            ("redis://:hunter2@host/0", "redis://:***@host/0"),
            ("rediss://me:hunter2@host:1/2", "rediss://me:***@host:1/2"),
            ("redis://me:hun@te/r2@host:1", "redis://me:***@host:1"),
            ("redis://me@host", "redis://me@host"),
            (
                "unix:///run/r.sock?db=1&pass=hunter2",
                "unix:///run/r.sock?db=1&pass=***",
            ),
            ("hunter2", "***"),
        ] {
            assert_eq!(Secret(url.to_owned()).hidden_url(), shown);
        }
    }

    #[test]
    fn debug_output_hides_everything() {
        assert_eq!(format!("{:?}", Secret("hunter2".to_owned())), "***");
    }
}
