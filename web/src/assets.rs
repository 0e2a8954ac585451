//! The static files, compiled in: our style sheet, script and icon, and the vendored libraries with their licences.
//!
//! | file in `static/vendor/` | from the npm package | licence |
//! |---|---|---|
//! | `htmx-2.0.11.min.js` | `htmx.org` | 0BSD |
//! | `htmx-ext-sse-2.2.4.min.js` | `htmx-ext-sse` | 0BSD |
//! | `idiomorph-ext-0.8.0.min.js` | `idiomorph` | 0BSD |
//!
//! A page names a file with the start of its hash ([`url`]), so a browser may keep it for ever.

use std::borrow::Cow;

use rust_embed::{EmbeddedFile, RustEmbed};

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

/// A file as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    pub bytes: Cow<'static, [u8]>,
    pub content_type: &'static str,
    /// Quoted, as the `ETag` header has it.
    pub etag: String,
}

/// The file at `path` below `static/`, if there is one.
#[must_use]
pub fn get(path: &str) -> Option<Asset> {
    let file = Files::get(path)?;
    Some(Asset {
        etag: format!("\"{}\"", version(&file)),
        content_type: content_type(path)?,
        bytes: file.data,
    })
}

/// The address of a file that changes whenever its content does.
#[must_use]
pub fn url(path: &str) -> String {
    match Files::get(path) {
        Some(file) => format!("/static/{path}?v={}", version(&file)),
        None => format!("/static/{path}"),
    }
}

fn version(file: &EmbeddedFile) -> String {
    let hash = file.metadata.sha256_hash();
    hex::encode(hash.get(..8).unwrap_or(&hash))
}

fn content_type(path: &str) -> Option<&'static str> {
    match path.rsplit_once('.')?.1 {
        "css" => Some("text/css; charset=utf-8"),
        "js" => Some("text/javascript; charset=utf-8"),
        "svg" => Some("image/svg+xml"),
        "txt" => Some("text/plain; charset=utf-8"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_type_and_its_address_names_its_content() {
        for path in Files::iter() {
            let asset = get(&path).unwrap();
            assert!(!asset.bytes.is_empty(), "{path}");
            let address = url(&path);
            let version = asset.etag.trim_matches('"');
            assert_eq!(address, format!("/static/{path}?v={version}"));
            assert_eq!(version.len(), 16);
        }
        assert_eq!(get("../Cargo.toml"), None);
        assert_eq!(get("nothing.css"), None);
    }

    #[test]
    fn a_library_comes_with_its_licence() {
        for library in ["htmx", "htmx-ext-sse", "idiomorph"] {
            let licence = get(&format!("vendor/{library}.LICENSE.txt")).unwrap();
            assert!(
                String::from_utf8_lossy(&licence.bytes).contains("Permission to use, copy"),
                "{library}"
            );
        }
    }
}
