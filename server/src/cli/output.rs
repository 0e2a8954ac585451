//! Results on standard output: tables for people, JSON for programs.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

/// Prints a line.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("write to standard output")
}

/// Tells something on standard error.
pub(super) fn note(text: &str) -> anyhow::Result<()> {
    writeln!(io::stderr(), "{text}").context("write to standard error")
}

/// Prints JSON.
pub(super) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value).context("write JSON")?)
}

/// Prints a table, or a sentence when it has no rows.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> anyhow::Result<()> {
    if rows.is_empty() {
        return line(empty);
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    line(&table.to_string())
}

/// Bytes for people: `4.2 GiB`.
pub(super) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// `-` for nothing.
pub(super) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// The start of an id, enough to tell it from others in a table.
pub(super) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Seconds, minutes, hours and days since a moment of the API's.
pub(super) fn ago(moment: &str) -> String {
    let seconds = age(moment).as_secs();
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// How long ago a moment of the API was; nothing for one that lies ahead or is none.
pub(super) fn age(moment: &str) -> Duration {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    let Ok(moment) = OffsetDateTime::parse(moment, &Rfc3339) else { return Duration::ZERO };
    Duration::try_from(OffsetDateTime::now_utc() - moment).unwrap_or_default()
}
