//! The dashboard's pages: views of plain structs, and the files that go with them.
//!
//! A view is a struct of what a page shows, in the words and numbers that people read; rendering it is a pure function.
//! Whoever serves the pages fills the structs. Each page has a *live part*, which is also served alone: the browser fetches
//! it again when the server says that something changed, and morphs it into the page.
//!
//! Invariants: nothing here queries a database or knows a socket; every text is escaped, whoever it came from; no page has
//! an inline script or style, so [`CONTENT_SECURITY_POLICY`] can forbid both; every page can be read without JavaScript.

pub mod agents;
pub mod array;
pub mod assets;
pub mod boot;
pub mod deployments;
pub mod groups;
pub mod images;
pub mod machine;
pub mod machines;
pub mod overview;
pub mod pool;
pub mod settings;
pub mod shell;
pub mod text;

pub use askama::Template;

/// The policy that every page is sent with: everything comes from this server, nothing is inline, nobody frames it.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
