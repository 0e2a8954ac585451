//! Settings: who may sign in, which programs may ask, and who asked for what.

use askama::Template;

use crate::text::Ago;

/// The page. For administrators only, so no part of it is served alone.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "settings.html")]
pub struct SettingsPage {
    pub users: Vec<User>,
    pub tokens: Vec<Token>,
    /// The newest first.
    pub audit: Vec<Asked>,
    /// A secret that was made just now; it is shown once.
    pub made: Option<Made>,
}

/// A secret, and what it is.
#[derive(Clone, Debug)]
pub struct Made {
    /// `The password of ann`, `A token for monitoring`.
    pub what: String,
    pub secret: String,
}

/// Somebody who may sign in.
#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    /// `admin`, …
    pub role: &'static str,
    pub created: Ago,
}

/// A token of a program, or of a client that is to join.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: i64,
    /// `api` or `join`.
    pub kind: &'static str,
    pub role: Option<&'static str>,
    pub note: String,
    pub created: Ago,
    pub expires: Option<String>,
    pub state: TokenState,
}

/// Whether a token is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    Open,
    Used,
    Revoked,
}

impl TokenState {
    const fn word(self) -> &'static str {
        match self {
            Self::Open => "good",
            Self::Used => "used",
            Self::Revoked => "revoked",
        }
    }

    const fn tone(self) -> &'static str {
        match self {
            Self::Open => "good",
            Self::Used => "quiet",
            Self::Revoked => "bad",
        }
    }
}

/// A change that was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at: Ago,
    pub actor: String,
    pub what: String,
    /// Of HTTP.
    pub status: u32,
}

impl Asked {
    const fn word(&self) -> &'static str {
        match self.status {
            200..=399 => "done",
            401 | 403 => "refused",
            _ => "not done",
        }
    }

    const fn tone(&self) -> &'static str {
        match self.status {
            200..=399 => "good",
            401 | 403 => "bad",
            _ => "warn",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago() -> Ago {
        Ago { at: "2026-11-29T10:00:00Z".into(), seconds: 90 }
    }

    #[test]
    fn it_shows_users_tokens_and_what_was_asked_for_and_escapes_what_they_say() {
        let page = SettingsPage {
            users: vec![User { name: "ann".into(), role: "operator", created: ago() }],
            tokens: vec![Token {
                id: 7,
                kind: "api",
                role: Some("viewer"),
                note: "<b>monitoring</b>".into(),
                created: ago(),
                expires: None,
                state: TokenState::Open,
            }],
            audit: vec![Asked {
                at: ago(),
                actor: "user ann".into(),
                what: "POST /array/scrub".into(),
                status: 403,
            }],
            made: Some(Made { what: "The password of ann".into(), secret: "s3cret".into() }),
        };
        let html = page.render().unwrap();
        for wanted in [
            r#"action="/settings/users/ann/role""#,
            r#"<option value="operator" selected>"#,
            r#"action="/settings/tokens/7/revoke""#,
            "&#60;b&#62;monitoring",
            "POST /array/scrub",
            "refused",
            "The password of ann",
            "s3cret",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        let empty = SettingsPage::default().render().unwrap();
        assert!(empty.contains("Nothing was asked for yet"), "{empty}");
    }
}
