//! Settings: one's own password; for administrators who may sign in, which programs may ask and are told, and who asked for what.

use askama::Template;

use crate::text::{Ago, counted};

/// The page. What it shows depends on who looks, so no part of it is served alone.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "settings.html")]
pub struct SettingsPage {
    /// Who looks.
    pub me: String,
    /// `admin`, …
    pub role: &'static str,
    /// That the work is limited to; none: everything.
    pub groups: Vec<String>,
    /// Something was done, in words.
    pub done: Option<&'static str>,
    /// A secret that was made just now; it is shown once.
    pub made: Option<Made>,
    /// For administrators.
    pub site: Option<Site>,
}

/// What administrators see.
#[derive(Clone, Debug, Default)]
pub struct Site {
    pub users: Vec<User>,
    pub tokens: Vec<Token>,
    pub webhooks: Vec<Webhook>,
    /// Kinds of events that a webhook can be told of.
    pub events: Vec<&'static str>,
    /// Of the site's CA.
    pub fingerprint: String,
    /// Until when its certificate is valid, RFC 3339, and how many days that is.
    pub ca_until: String,
    pub ca_days: u64,
    /// The newest first.
    pub audit: Vec<Asked>,
}

/// A program that is told of events.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub id: i64,
    pub url: String,
    /// Empty: all.
    pub events: Vec<String>,
    pub created: Ago,
    /// Why the next event was not delivered yet.
    pub problem: Option<String>,
}

impl Webhook {
    fn told(&self) -> String {
        if self.events.is_empty() { "everything".to_owned() } else { self.events.join(", ") }
    }
}

impl Site {
    fn left(&self) -> String {
        counted(self.ca_days, "day", "days")
    }
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
    /// Groups that the work is limited to; none: everything.
    pub groups: Vec<String>,
    pub created: Ago,
}

/// A token of a program, or of a client that is to join.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: i64,
    /// `api` or `join`.
    pub kind: &'static str,
    pub role: Option<&'static str>,
    /// Groups that its work is limited to; none: everything.
    pub groups: Vec<String>,
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
        let site = Site {
            users: vec![User {
                name: "ann".into(),
                role: "operator",
                groups: vec!["lab-b".into()],
                created: ago(),
            }],
            tokens: vec![Token {
                id: 7,
                kind: "api",
                role: Some("viewer"),
                groups: vec![],
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
            webhooks: vec![Webhook {
                id: 3,
                url: "https://chat.example/<hook>".into(),
                events: Vec::new(),
                created: ago(),
                problem: Some("it answered 500".into()),
            }],
            events: vec!["machine-changed"],
            fingerprint: "ab:cd".into(),
            ca_until: "2056-11-29T10:00:00Z".into(),
            ca_days: 10_950,
        };
        let page = SettingsPage {
            groups: vec![],
            me: "root".into(),
            role: "admin",
            done: None,
            made: Some(Made { what: "The password of ann".into(), secret: "s3cret".into() }),
            site: Some(site),
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
            r#"action="/settings/webhooks/3/ping""#,
            "https://chat.example/&#60;hook&#62;",
            "it answered 500",
            "ab:cd",
            r#"href="/api/v1/backup""#,
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        let site = Some(Site::default());
        let empty = SettingsPage { site, ..SettingsPage::default() }.render().unwrap();
        assert!(empty.contains("Nothing was asked for yet"), "{empty}");
    }

    #[test]
    fn whoever_is_no_administrator_sees_what_is_theirs() {
        let me = SettingsPage { me: "ann".into(), role: "viewer", ..SettingsPage::default() };
        let html = me.render().unwrap();
        assert!(html.contains(r#"action="/settings/own-password""#) && html.contains("ann"));
        assert!(!html.contains("Users") && !html.contains("/settings/tokens"), "{html}");
    }
}
