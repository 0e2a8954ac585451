//! Numbers as people read them. Sizes in powers of 1024 as everywhere in Cairn, speeds in MB/s as networks have them.

use std::fmt::{Display, Formatter, Result};

/// A size: `1.4 GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Bytes in a second: `112 MB/s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(pub u64);

/// How long something takes: `2 min 5 s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub seconds: u64,
}

/// A share of a hundred; never more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percent(u8);

/// A point in time, and how long ago it was when the page was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ago {
    /// RFC 3339.
    pub at: String,
    pub seconds: u64,
}

impl Percent {
    pub const ZERO: Self = Self(0);
    pub const ALL: Self = Self(100);

    /// `part` of `whole`, rounded down: 100 means all of it. Nothing of nothing is all.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Self {
        if part >= whole {
            return Self::ALL;
        }
        let share = u128::from(part) * 100 / u128::from(whole);
        Self(u8::try_from(share).unwrap_or(100))
    }

    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Rounded down to tens: what is read aloud while it grows.
    #[must_use]
    pub const fn coarse(self) -> Self {
        Self(self.0 - self.0 % 10)
    }
}

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}\u{a0}%", self.0)
    }
}

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (unit, name) = match self.0 {
            0x100_0000_0000.. => (1_u128 << 40, "TiB"),
            0x4000_0000.. => (1 << 30, "GiB"),
            0x10_0000.. => (1 << 20, "MiB"),
            0x400.. => (1 << 10, "KiB"),
            bytes => return write!(f, "{bytes}\u{a0}B"),
        };
        scaled(f, u128::from(self.0), unit, name)
    }
}

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            1_000_000_000.. => scaled(f, self.0.into(), 1_000_000_000, "GB/s"),
            _ => scaled(f, self.0.into(), 1_000_000, "MB/s"),
        }
    }
}

/// Three digits at most behind which nothing is worth reading: `1.4`, `14`, `140`.
fn scaled(f: &mut Formatter<'_>, amount: u128, unit: u128, name: &str) -> Result {
    let tenths = amount * 10 / unit;
    if tenths >= 1000 || tenths.is_multiple_of(10) {
        write!(f, "{}\u{a0}{name}", tenths / 10)
    } else {
        write!(f, "{}.{}\u{a0}{name}", tenths / 10, tenths % 10)
    }
}

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (days, hours) = (self.seconds / 86_400, self.seconds / 3600 % 24);
        let (minutes, seconds) = (self.seconds / 60 % 60, self.seconds % 60);
        match self.seconds {
            0..60 => write!(f, "{seconds}\u{a0}s"),
            60..3600 if seconds == 0 => write!(f, "{minutes}\u{a0}min"),
            60..3600 => write!(f, "{minutes}\u{a0}min {seconds}\u{a0}s"),
            3600..86_400 => write!(f, "{hours}\u{a0}h {minutes}\u{a0}min"),
            _ if days == 1 => f.write_str("1\u{a0}day"),
            _ => write!(f, "{days}\u{a0}days"),
        }
    }
}

impl Display for Ago {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.seconds {
            0..10 => f.write_str("just now"),
            seconds @ 10..60 => write!(f, "{seconds}\u{a0}s ago"),
            seconds @ 60..3600 => write!(f, "{}\u{a0}min ago", seconds / 60),
            seconds @ 3600..86_400 => write!(f, "{}\u{a0}h ago", seconds / 3600),
            86_400..172_800 => f.write_str("yesterday"),
            seconds => write!(f, "{}\u{a0}days ago", seconds / 86_400),
        }
    }
}

/// `1 client`, `3 clients`.
#[must_use]
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count}\u{a0}{}", if count == 1 { one } else { many })
}

/// `a`, `a and b`, `a, b and c`; from the fifth name on only how many more there are.
#[must_use]
pub fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] if names.len() <= 4 => format!("{} and {last}", first.join(", ")),
        [a, b, c, rest @ ..] => format!("{a}, {b}, {c} and {} more", rest.len()),
        [..] => names.join(" and "),
    }
}

/// What comes after the path of an address.
#[derive(Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    /// Nothing is said of what is empty.
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                self.0.push(char::from(byte));
            } else {
                self.0.push_str(&format!("%{byte:02X}"));
            }
        }
    }

    pub(crate) fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(shown: &impl Display) -> String {
        shown.to_string().replace('\u{a0}', " ")
    }

    #[test]
    fn sizes_have_the_digits_that_matter() {
        let shown: Vec<String> = [
            0,
            812,
            4096,
            1536,
            5 << 20,
            1_503_238_553,
            20 << 30,
            187 << 30,
            (3 << 40) + (1 << 39),
        ]
        .iter()
        .map(|size| plain(&Bytes(*size)))
        .collect();
        assert_eq!(
            shown,
            [
                "0 B", "812 B", "4 KiB", "1.5 KiB", "5 MiB", "1.3 GiB", "20 GiB", "187 GiB",
                "3.5 TiB"
            ]
        );
        assert_eq!(plain(&Bytes(u64::MAX)), "16777215 TiB");
    }

    #[test]
    fn speeds_are_in_megabytes_of_a_million() {
        assert_eq!(plain(&Rate(117_400_000)), "117 MB/s");
        assert_eq!(plain(&Rate(950_000)), "0.9 MB/s");
        assert_eq!(plain(&Rate(1_250_000_000)), "1.2 GB/s");
    }

    #[test]
    fn times_are_as_exact_as_they_are_long() {
        for (seconds, shown) in [
            (0, "0 s"),
            (59, "59 s"),
            (120, "2 min"),
            (125, "2 min 5 s"),
            (7_320, "2 h 2 min"),
            (90_000, "1 day"),
        ] {
            assert_eq!(plain(&Span { seconds }), shown);
        }
        let ago = |seconds| plain(&Ago { at: String::new(), seconds });
        assert_eq!(
            [ago(3), ago(42), ago(600), ago(7300)],
            ["just now", "42 s ago", "10 min ago", "2 h ago"]
        );
        assert_eq!([ago(90_000), ago(400_000)], ["yesterday", "4 days ago"]);
    }

    #[test]
    fn a_hundred_percent_is_said_only_of_all() {
        assert_eq!(Percent::of(999, 1000).number(), 99);
        assert_eq!(Percent::of(0, 0), Percent::ALL);
        assert_eq!(Percent::of(7, 3), Percent::ALL);
        assert_eq!(Percent::of(u64::MAX - 1, u64::MAX).number(), 99);
        assert_eq!(Percent::of(57, 100).coarse().number(), 50);
    }

    #[test]
    fn lists_are_short_and_counts_agree() {
        assert_eq!(listed(&["a", "b", "c"]), "a, b and c");
        assert_eq!(listed(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(plain(&counted(1, "client", "clients")), "1 client");
        assert_eq!(plain(&counted(0, "client", "clients")), "0 clients");
    }
}
