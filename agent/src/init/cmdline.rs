//! What the boot script told the payload on the kernel's command line.
//!
//! | word | meaning |
//! |---|---|
//! | `cairn.server=ADDR:PORT` | the server; an address, since the payload has no resolver |
//! | `cairn.ca=HEX` | SHA-256 of the site's CA certificate: how the server proves itself |
//! | `cairn.time=SECONDS` | the server's time when it wrote the boot script, optional |
//! | `console=NAME,…` | further consoles to show everything on |
//!
//! The command line comes over the same untrusted path as the payload itself, so it holds no secret.

use std::net::SocketAddr;

use cairn_array::tls::Fingerprint;

/// The parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootWords {
    pub server: SocketAddr,
    pub ca: Fingerprint,
    /// Seconds since 1970.
    pub time: Option<u64>,
}

/// A word is missing or means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBootWords {
    #[error(
        "the kernel command line has no {0}=…; boot this machine with the script that cairn-server serves"
    )]
    Missing(&'static str),
    #[error(
        "{word}={value} on the kernel command line is no {expected}; boot with the script that cairn-server serves"
    )]
    Bad { word: &'static str, value: String, expected: &'static str },
}

/// Reads the command line; of a word that is there twice the last one counts, as for the kernel.
///
/// # Errors
/// [`BadBootWords`] when the server or the CA is missing or malformed.
pub fn parse(cmdline: &str) -> Result<BootWords, BadBootWords> {
    let server = needed(cmdline, "cairn.server", "address and port like 10.0.0.1:8440")?;
    let ca = needed(cmdline, "cairn.ca", "SHA-256 in hex")?;
    let time = last(cmdline, "cairn.time")
        .map(|value| read(value, "cairn.time", "number of seconds since 1970"))
        .transpose()?;
    Ok(BootWords { server, ca, time })
}

/// The names of `console=` words, without their speed.
#[must_use]
pub fn consoles(cmdline: &str) -> Vec<String> {
    cmdline
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("console="))
        .filter_map(|value| value.split(',').next())
        .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()))
        .map(str::to_owned)
        .collect()
}

fn needed<T: std::str::FromStr>(
    cmdline: &str,
    word: &'static str,
    expected: &'static str,
) -> Result<T, BadBootWords> {
    read(last(cmdline, word).ok_or(BadBootWords::Missing(word))?, word, expected)
}

fn read<T: std::str::FromStr>(
    value: &str,
    word: &'static str,
    expected: &'static str,
) -> Result<T, BadBootWords> {
    value.parse().map_err(|_| BadBootWords::Bad { word, value: value.to_owned(), expected })
}

fn last<'a>(cmdline: &'a str, word: &str) -> Option<&'a str> {
    cmdline
        .split_whitespace()
        .filter_map(|part| part.strip_prefix(word)?.strip_prefix('='))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_script_s_words_are_read() {
        let ca = "ab".repeat(32);
        let line = format!(
            "BOOT_IMAGE=vmlinuz console=tty0 console=ttyS0,115200 cairn.server=10.0.0.1:8440 cairn.ca={ca} quiet\n"
        );
        let words = parse(&line).unwrap();
        assert_eq!(words.server, "10.0.0.1:8440".parse().unwrap());
        assert_eq!(words.ca, Fingerprint([0xab; 32]));
        assert_eq!(words.time, None);
        assert_eq!(consoles(&line), ["tty0", "ttyS0"]);
        let again = format!("{line} cairn.server=[fd00::1]:9000 cairn.time=1795430000");
        assert_eq!(parse(&again).unwrap().server, "[fd00::1]:9000".parse().unwrap());
        assert_eq!(parse(&again).unwrap().time, Some(1_795_430_000));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(parse("quiet"), Err(BadBootWords::Missing("cairn.server")));
        assert_eq!(parse("cairn.server=10.0.0.1:8440"), Err(BadBootWords::Missing("cairn.ca")));
        let name = parse("cairn.server=server.example:8440 cairn.ca=00").unwrap_err();
        assert!(name.to_string().contains("cairn.server=server.example:8440"), "{name}");
        let short = parse("cairn.server=10.0.0.1:8440 cairn.ca=00").unwrap_err();
        assert!(short.to_string().contains("no SHA-256 in hex"), "{short}");
        assert_eq!(consoles("console=../x console="), Vec::<String>::new());
    }
}
