//! Changes one key of a configuration file and leaves every other byte of it.

use toml::de::DeTable;

use super::place_of;

/// Sets `key`, a key at the top of a file, to a text. In place of its value when the file has one; else in place of a
/// commented example, `# key = …`; else at the end. A value that is already so changes nothing.
///
/// # Errors
/// When `text` is not TOML.
pub fn set(text: &str, key: &str, value: &str) -> Result<String, toml::de::Error> {
    let quoted = quoted(value);
    let table = DeTable::parse(text)?;
    let before = table.get_ref().iter().find(|(name, _)| name.get_ref() == key);
    if before.is_some_and(|(_, before)| before.get_ref().as_str() == Some(value)) {
        return Ok(text.to_owned());
    }
    let mut edited = text.to_owned();
    if let Some(place) = place_of(&table, key) {
        edited.replace_range(place, &quoted);
    } else if let Some(place) = example_of(text, key) {
        edited.replace_range(place, &format!("{key} = {quoted}"));
    } else {
        if !edited.is_empty() && !edited.ends_with('\n') {
            edited.push('\n');
        }
        edited.push_str(&format!("{key} = {quoted}\n"));
    }
    Ok(edited)
}

/// The line `# key = …` without its end.
fn example_of(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches(['\n', '\r']);
        let named = content.strip_prefix('#').map(str::trim_start);
        let named = named.and_then(|rest| rest.strip_prefix(key)).map(str::trim_start);
        if named.is_some_and(|rest| rest.starts_with('=')) {
            return Some(start..start + content.len());
        }
        start += line.len();
    }
    None
}

/// The text of an example file with every example in force: `#key = …` becomes `key = …`. Sentences begin with `# `.
#[must_use]
pub fn with_examples(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(example) if example.starts_with(|sign: char| sign.is_ascii_lowercase()) => example,
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// A basic string of TOML.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for sign in value.chars() {
        match sign {
            '"' | '\\' => text.extend(['\\', sign]),
            sign if sign.is_control() => text.push_str(&format!("\\u{:04X}", u32::from(sign))),
            sign => text.push(sign),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_set_where_it_is_or_where_its_example_is() {
        let text = "# Where.\n#listen = \"0.0.0.0:1\"\n\nnbd = \"x\" # why\n";
        let edited = set(text, "listen", "10.0.0.1:1").unwrap();
        assert_eq!(edited, "# Where.\nlisten = \"10.0.0.1:1\"\n\nnbd = \"x\" # why\n");
        let edited = set(&edited, "nbd", "y").unwrap();
        assert_eq!(edited, "# Where.\nlisten = \"10.0.0.1:1\"\n\nnbd = \"y\" # why\n");
        let edited = set(&edited, "dhcp", "off").unwrap();
        assert!(edited.ends_with("# why\ndhcp = \"off\"\n"), "{edited}");
        assert_eq!(set("a = 1", "b", "c").unwrap(), "a = 1\nb = \"c\"\n");
        assert_eq!(set("nbd = 'x'\n", "nbd", "x").unwrap(), "nbd = 'x'\n");
        // Not an example of this key.
        let other = "# dhcp_pool = \"a\"\n";
        assert_eq!(set(other, "dhcp", "off").unwrap(), "# dhcp_pool = \"a\"\ndhcp = \"off\"\n");
        assert!(set("not toml", "dhcp", "off").is_err());
    }

    proptest! {
        #[test]
        fn a_value_that_was_set_is_read_back(value in "\\PC*|[\\x00-\\x7f]*", crlf: bool) {
            let end = if crlf { "\r\n" } else { "\n" };
            let text = format!("# key = \"example\"{end}other = \"ä\"{end}");
            let edited = set(&text, "key", &value).unwrap();
            let table = DeTable::parse(&edited).unwrap();
            prop_assert_eq!(table.get_ref()["key"].get_ref().as_str(), Some(value.as_str()));
            prop_assert_eq!(table.get_ref()["other"].get_ref().as_str(), Some("ä"));
            prop_assert_eq!(set(&edited, "key", &value).unwrap(), edited);
        }
    }
}
