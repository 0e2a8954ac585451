//! Grants ([`cairn_core::grant`]) as people pass them on: a text file.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cairn_core::grant::MAX_BYTES;

/// Signs of a line of base64.
const LINE: usize = 76;
/// The largest file: base64 and the words around it.
const MAX_FILE: u64 = 2 * MAX_BYTES as u64;

/// The text of a signed grant; `words` for people stand before it.
#[must_use]
pub fn to_text(signed: &[u8], words: &[String]) -> String {
    let mut text = String::new();
    for word in words {
        // A line break would end the comment.
        text.push_str("# ");
        text.extend(word.chars().filter(|sign| !sign.is_control()));
        text.push('\n');
    }
    for (at, sign) in STANDARD.encode(signed).chars().enumerate() {
        if at > 0 && at % LINE == 0 {
            text.push('\n');
        }
        text.push(sign);
    }
    text.push('\n');
    text
}

/// The signed grant in a text.
///
/// # Errors
/// When there is none in it.
pub fn of_text(text: &str) -> anyhow::Result<Vec<u8>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let signed = STANDARD.decode(lines.collect::<String>()).context("decode the grant")?;
    anyhow::ensure!(!signed.is_empty(), "there is no grant in it");
    Ok(signed)
}

/// Reads a file with a grant.
///
/// # Errors
/// When it cannot be read, or has no grant.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let what = || format!("read grant {}", path.display());
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .with_context(what)?;
    of_text(&text).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_people_is_read_again() {
        for length in [1, 56, 57, 58, 1000] {
            let signed = vec![7; length];
            let words = ["for client pc-1".to_owned(), "two\n# lines".to_owned()];
            let text = to_text(&signed, &words);
            assert!(text.starts_with("# for client pc-1\n# two# lines\n"), "{text}");
            assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
            assert_eq!(of_text(&text).unwrap(), signed);
        }
        assert!(of_text("# nothing\n").is_err());
        assert!(of_text("no base64!").is_err());
    }
}
