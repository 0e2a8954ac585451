//! What every page has around it: the way to the other pages, and the page for signing in.

use askama::Template;

/// The pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Overview,
    Images,
    Agents,
    Machines,
    Deployments,
    Boot,
    Array,
    Settings,
}

impl Place {
    const ALL: [Self; 8] = [
        Self::Overview,
        Self::Images,
        Self::Machines,
        Self::Deployments,
        Self::Boot,
        Self::Agents,
        Self::Array,
        Self::Settings,
    ];

    /// Where the page is.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Overview => "/",
            Self::Images => "/images",
            Self::Agents => "/agents",
            Self::Machines => "/machines",
            Self::Deployments => "/deployments",
            Self::Boot => "/boot",
            Self::Array => "/array",
            Self::Settings => "/settings",
        }
    }

    /// What it is called.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Images => "Images",
            Self::Agents => "Agents",
            Self::Machines => "Machines",
            Self::Deployments => "Deployments",
            Self::Boot => "Boot",
            Self::Array => "Array",
            Self::Settings => "Settings",
        }
    }

    /// The word after `/parts/nav?at=`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Images => "images",
            Self::Agents => "agents",
            Self::Machines => "machines",
            Self::Deployments => "deployments",
            Self::Boot => "boot",
            Self::Array => "array",
            Self::Settings => "settings",
        }
    }

    /// The page at that path.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.path() == path)
    }

    /// The page of that word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.word() == word)
    }
}

/// The way to the other pages, with what waits there. Also served alone, as `/parts/nav`.
#[derive(Clone, Debug, Template)]
#[template(path = "nav.html")]
pub struct Nav {
    pub at: Place,
    /// Of who looks, `admin`, …: what it may not do is not shown.
    pub role: &'static str,
    /// Whose work is limited to some groups of machines.
    pub scoped: bool,
    pub agents_pending: u64,
    pub machines_waiting: u64,
    pub installs_running: u64,
    /// On their way from the firmware to the agent, lately.
    pub machines_stopped: u64,
}

impl Nav {
    /// What waits at a page: how many, and in words.
    fn badge(&self, place: &Place) -> Option<(u64, &'static str)> {
        let (count, what) = match place {
            Place::Agents => (self.agents_pending, "to approve"),
            Place::Machines => (self.machines_waiting, "waiting"),
            Place::Deployments => (self.installs_running, "running"),
            Place::Boot => (self.machines_stopped, "stopped"),
            Place::Overview | Place::Images | Place::Array | Place::Settings => return None,
        };
        (count > 0).then_some((count, what))
    }
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    nav: &'a Nav,
    notice: Option<&'a str>,
    body: String,
}

/// A whole page around its body. `notice` says why what was asked for did not happen.
///
/// # Errors
/// When rendering fails, which no view here does.
pub fn page(nav: &Nav, notice: Option<&str>, body: &impl Template) -> askama::Result<String> {
    Page { nav, notice, body: body.render()? }.render()
}

/// The page for signing in.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "sign_in.html")]
pub struct SignIn {
    /// Why it did not work just now.
    pub problem: Option<String>,
    /// The page to go on to; a path of ours.
    pub next: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nav() -> Nav {
        Nav {
            at: Place::Agents,
            role: "viewer",
            scoped: false,
            agents_pending: 2,
            machines_waiting: 1,
            installs_running: 0,
            machines_stopped: 0,
        }
    }

    #[test]
    fn the_way_says_where_one_is_and_what_waits_where() {
        let html = nav().render().unwrap();
        assert!(html.contains(r#"<a href="/agents" aria-current="page""#), "{html}");
        assert_eq!(html.matches("aria-current").count(), 1);
        assert!(html.contains("2<span class=\"sr\"> to approve</span>"), "{html}");
        assert!(html.contains("1<span class=\"sr\"> waiting</span>"), "{html}");
        assert!(!html.contains("running</span>"), "{html}");
    }

    #[test]
    fn a_page_has_no_inline_script_or_style_and_escapes_its_notice() {
        let body = SignIn::default();
        let html = page(&nav(), Some("<b>no</b>"), &body).unwrap();
        assert!(html.contains("&#60;b&#62;no&#60;/b&#62;"), "{html}");
        assert!(!html.contains("style="), "{html}");
        assert!(!html.contains("<style"), "{html}");
        assert!(!html.contains(" on"), "{html}");
        assert_eq!(html.matches("<script").count(), html.matches("<script src=\"/static/").count());
    }

    #[test]
    fn signing_in_says_why_it_failed() {
        let html =
            SignIn { problem: Some("name or password is wrong".into()), next: "/images".into() }
                .render()
                .unwrap();
        assert!(html.contains("name or password is wrong"));
        assert!(html.contains(r#"type="password""#));
        assert!(html.contains(r#"name="next" value="/images""#));
    }

    #[test]
    fn words_and_places_belong_together() {
        for place in Place::ALL {
            assert_eq!(Place::of_word(place.word()), Some(place));
        }
        assert_eq!(Place::of_word("x"), None);
    }
}
