//! Tokens as text: `cairn_<kind>_<secret>_<CA fingerprint>`.
//!
//! The fingerprint travels with the secret, so that whoever is handed a token can tell the real server from
//! another before he sends it. The server stores only the secret's hash.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::Fingerprint;

/// Random bytes in a token.
const SECRET_BYTES: usize = 32;

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Lets one agent join.
    Join,
    /// Speaks for an administrator at the API.
    Api,
}

/// A bearer secret and the CA under which it may be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    /// base64url, 43 characters.
    pub secret: String,
    pub fingerprint: Fingerprint,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?}, ..)", self.kind)
    }
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Cairn token: copy it whole, it looks like cairn_join_…_…")]
pub struct BadToken;

impl Token {
    /// A fresh token.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random(kind: TokenKind, fingerprint: Fingerprint) -> anyhow::Result<Self> {
        let mut secret = [0; SECRET_BYTES];
        crate::random::fill(&mut secret)?;
        Ok(Self { kind, secret: URL_SAFE_NO_PAD.encode(secret), fingerprint })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            TokenKind::Join => "join",
            TokenKind::Api => "api",
        };
        write!(f, "cairn_{kind}_{}_{}", self.secret, self.fingerprint)
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let rest = text.trim().strip_prefix("cairn_").ok_or(BadToken)?;
        let (kind, rest) = rest.split_once('_').ok_or(BadToken)?;
        let kind = match kind {
            "join" => TokenKind::Join,
            "api" => TokenKind::Api,
            _ => return Err(BadToken),
        };
        // base64url may hold '_' itself, hex may not: the last one divides.
        let (secret, fingerprint) = rest.rsplit_once('_').ok_or(BadToken)?;
        if URL_SAFE_NO_PAD.decode(secret).map_err(|_| BadToken)?.len() != SECRET_BYTES {
            return Err(BadToken);
        }
        Ok(Self {
            kind,
            secret: secret.to_owned(),
            fingerprint: fingerprint.parse().map_err(|_| BadToken)?,
        })
    }
}
