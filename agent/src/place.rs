//! Where the server is, as the operator wrote it: `https://host:port`.

use std::{fmt, str::FromStr};

use cairn_array::tls::{Member, NameTable};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The server's HTTPS port when the URL names none.
pub const DEFAULT_PORT: u16 = 8440;

/// A host (name or address) and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPlace {
    host: String,
    port: u16,
}

/// The text is no server's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a server's URL: write it like https://cairn.example:8440")]
pub struct BadPlace;

impl ServerPlace {
    /// Lets `names` find the server here.
    pub fn announce(&self, names: &NameTable) {
        names.set_host(Member::Server, &self.host, self.port);
    }
}

impl FromStr for ServerPlace {
    type Err = BadPlace;

    /// Accepts `https://` in front, a `/` behind, IPv6 in brackets; `http://` is refused, nothing secret goes there.
    fn from_str(text: &str) -> Result<Self, BadPlace> {
        let place = text.trim().strip_prefix("https://").unwrap_or(text.trim());
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(BadPlace)?;
                (
                    host,
                    if port.is_empty() {
                        None
                    } else {
                        Some(port.strip_prefix(':').ok_or(BadPlace)?)
                    },
                )
            }
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = port.map_or(Ok(DEFAULT_PORT), str::parse).map_err(|_| BadPlace)?;
        let in_host =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_' | '%');
        if host.is_empty() || port == 0 || !host.chars().all(in_host) {
            return Err(BadPlace);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for ServerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for ServerPlace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        for (text, shown) in [
            ("https://10.0.0.1:8440", "https://10.0.0.1:8440"),
            ("https://cairn.example/", "https://cairn.example:8440"),
            ("cairn.example:9000", "https://cairn.example:9000"),
            ("https://[fd00::1]:9000", "https://[fd00::1]:9000"),
        ] {
            assert_eq!(text.parse::<ServerPlace>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "http://10.0.0.1:8440",
            "https://host:port",
            "https://host:0",
            "https://a b",
            "host/path",
        ] {
            assert_eq!(bad.parse::<ServerPlace>(), Err(BadPlace), "{bad}");
        }
    }
}
