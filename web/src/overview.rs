//! The overview: one sentence on top, what needs somebody, what is running.

use askama::Template;

use crate::{
    deployments::Install,
    images::Lives,
    text::{Percent, counted, listed},
};

/// The page.
#[derive(Debug, Template)]
#[template(path = "overview.html")]
pub struct OverviewPage<'a> {
    pub live: &'a Overview,
}

/// Its live part, `/parts/overview`.
#[derive(Clone, Debug, Template)]
#[template(path = "overview_live.html")]
pub struct Overview {
    pub verdict: Verdict,
    pub needs: Vec<Need>,
    /// Deployments to several machines that are under way, each in a sentence.
    pub rooms: Vec<String>,
    /// What needs somebody comes first.
    pub running: Vec<Install>,
    /// How many are installed beside these.
    pub running_more: usize,
    pub tiles: Vec<Tile>,
}

/// How things stand, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub tone: Tone,
    pub headline: String,
    pub detail: String,
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Quiet,
    Warn,
    Bad,
}

/// Something that waits for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub tone: Tone,
    pub text: String,
    pub href: &'static str,
    pub action: &'static str,
}

/// A number to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    pub label: &'static str,
    pub value: String,
    pub note: String,
    pub href: &'static str,
}

/// An image as far as its safety goes.
#[derive(Clone, Debug)]
pub struct Safety<'a> {
    pub name: &'a str,
    pub lives: &'a Lives,
}

impl Tone {
    const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Quiet => "quiet",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// Says how safe the images are: the least safe of them decides.
#[must_use]
pub fn judge(images: &[Safety<'_>]) -> Verdict {
    let names = |pick: fn(&Lives) -> bool| -> Vec<&str> {
        images.iter().filter(|image| pick(image.lives)).map(|image| image.name).collect()
    };
    let bare = names(|lives| lives.spread().is_none());
    let moving = names(|lives| lives.spread().is_some() && !lives.is_spread());
    if images.is_empty() {
        Verdict {
            tone: Tone::Quiet,
            headline: "There are no images yet.".to_owned(),
            detail: "Register one, and let machines lend space to hold it.".to_owned(),
        }
    } else if !bare.is_empty() {
        Verdict {
            tone: Tone::Bad,
            headline: alone(&bare, images.len()),
            detail: bare_reason(images),
        }
    } else if !moving.is_empty() {
        let verb = if moving.len() == 1 { "is" } else { "are" };
        let far = spread_of_all(images);
        Verdict {
            tone: Tone::Warn,
            headline: format!("{} {verb} being spread over the clients: {far}.", listed(&moving)),
            detail: "Until that is done, do not lose the server.".to_owned(),
        }
    } else {
        Verdict {
            tone: Tone::Good,
            headline: match images {
                [one] => format!("{} is safe.", one.name),
                many => format!("All {} images are safe.", many.len()),
            },
            detail: promises(images),
        }
    }
}

fn alone(bare: &[&str], of: usize) -> String {
    match bare {
        [name] => format!("{name} is on the server alone: if the server is lost, so is the image."),
        many if many.len() == of => {
            "All images are on the server alone: if it is lost, so are they.".to_owned()
        }
        many => format!("{} are on the server alone: if it is lost, so are they.", listed(many)),
    }
}

fn spread_of_all(images: &[Safety<'_>]) -> Percent {
    let (held, wanted) = images.iter().fold((0_u64, 0_u64), |(held, wanted), image| {
        let lives = image.lives;
        (
            held.saturating_add(lives.held.0.min(lives.wanted.0)),
            wanted.saturating_add(lives.wanted.0),
        )
    });
    Percent::of(held, wanted)
}

/// Why an image is nowhere but on the server, when the planner said so.
fn bare_reason(images: &[Safety<'_>]) -> String {
    let told = images
        .iter()
        .filter(|image| image.lives.spread().is_none())
        .find_map(|image| image.lives.promise.clone());
    told.unwrap_or_else(|| "Add agents that lend space, and approve them.".to_owned())
}

/// What may be lost: the one promise that all share, or each different one with its first image.
fn promises(images: &[Safety<'_>]) -> String {
    let mut different: Vec<(&str, &str)> = Vec::new();
    for image in images {
        let Some(promise) = image.lives.promise.as_deref() else { continue };
        if different.iter().all(|(_, known)| *known != promise) {
            different.push((image.name, promise));
        }
    }
    match different.as_slice() {
        [] => String::new(),
        [(_, promise)] => (*promise).to_owned(),
        many => {
            let each: Vec<String> =
                many.iter().take(3).map(|(name, promise)| format!("{name}: {promise}")).collect();
            each.join(" ")
        }
    }
}

/// What waits for somebody, the most pressing first.
#[must_use]
pub fn needs(
    machines: &[&str],
    agents: &[&str],
    failed_installs: &[&str],
    failed_jobs: u64,
) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut say = |tone, text, href, action| needs.push(Need { tone, text, href, action });
    if !machines.is_empty() {
        let verb = if machines.len() == 1 { "waits" } else { "wait" };
        let count = counted(count(machines), "machine", "machines");
        say(
            Tone::Warn,
            format!("{count} {verb} for approval: {}.", listed(machines)),
            "/machines",
            "Look at the codes",
        );
    }
    if !failed_installs.is_empty() {
        let count = counted(count(failed_installs), "install", "installs");
        say(
            Tone::Bad,
            format!("{count} failed: {}.", listed(failed_installs)),
            "/deployments",
            "See why",
        );
    }
    if !agents.is_empty() {
        let verb = if agents.len() == 1 { "waits" } else { "wait" };
        let count = counted(count(agents), "agent", "agents");
        say(
            Tone::Warn,
            format!("{count} {verb} for approval: {}.", listed(agents)),
            "/agents",
            "Approve",
        );
    }
    if failed_jobs > 0 {
        let count = counted(failed_jobs, "job", "jobs");
        say(
            Tone::Bad,
            format!("{count} of the server failed; its log says why."),
            "/images",
            "See the images",
        );
    }
    needs
}

fn count(names: &[&str]) -> u64 {
    u64::try_from(names.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Bytes;

    fn lives(clients: u64, held: u64, wanted: u64, promise: &str) -> Lives {
        Lives {
            server: true,
            clients,
            held: Bytes(held),
            wanted: Bytes(wanted),
            promise: (!promise.is_empty()).then(|| promise.to_owned()),
        }
    }

    fn sentence(images: &[(&str, Lives)]) -> (Tone, String) {
        let images: Vec<_> = images.iter().map(|(name, lives)| Safety { name, lives }).collect();
        let verdict = judge(&images);
        (verdict.tone, format!("{} {}", verdict.headline, verdict.detail).replace('\u{a0}', " "))
    }

    const PROMISE: &str = "The server and any 1 of the 4 clients may be lost.";

    #[test]
    fn images_that_are_spread_are_safe_and_it_says_what_may_be_lost() {
        let (tone, text) =
            sentence(&[("a", lives(4, 9, 9, PROMISE)), ("b", lives(4, 5, 5, PROMISE))]);
        assert_eq!((tone, text), (Tone::Good, format!("All 2 images are safe. {PROMISE}")));
        let (_, text) = sentence(&[("a", lives(4, 9, 9, PROMISE))]);
        assert_eq!(text, format!("a is safe. {PROMISE}"));
        let (_, text) =
            sentence(&[("a", lives(4, 9, 9, PROMISE)), ("b", lives(1, 5, 5, "Other."))]);
        assert_eq!(text, format!("All 2 images are safe. a: {PROMISE} b: Other."));
    }

    #[test]
    fn the_least_safe_image_decides() {
        let (tone, text) = sentence(&[("a", lives(4, 9, 9, PROMISE)), ("b", lives(0, 0, 0, ""))]);
        assert_eq!(tone, Tone::Bad);
        assert_eq!(
            text,
            "b is on the server alone: if the server is lost, so is the image. Add agents that lend space, and approve them."
        );
        let (tone, text) = sentence(&[("a", lives(4, 3, 9, PROMISE))]);
        assert_eq!(tone, Tone::Warn);
        assert_eq!(
            text,
            "a is being spread over the clients: 33 %. Until that is done, do not lose the server."
        );
        assert_eq!(sentence(&[]).0, Tone::Quiet);
    }

    #[test]
    fn what_needs_somebody_is_listed_with_the_way_there() {
        let needs = needs(&["Q9W1-DFWF"], &["pc-1", "pc-2"], &["pc-7"], 0);
        let texts: Vec<_> = needs.iter().map(|need| need.text.replace('\u{a0}', " ")).collect();
        assert_eq!(
            texts,
            [
                "1 machine waits for approval: Q9W1-DFWF.",
                "1 install failed: pc-7.",
                "2 agents wait for approval: pc-1 and pc-2."
            ]
        );
        assert_eq!(needs[0].href, "/machines");
    }

    #[test]
    fn the_page_shows_the_sentence_first_and_escapes_what_machines_report() {
        let overview = Overview {
            verdict: judge(&[]),
            needs: needs(&[], &["<script>x</script>"], &[], 1),
            rooms: vec![],
            running: vec![],
            running_more: 0,
            tiles: vec![Tile {
                label: "Images",
                value: "0".into(),
                note: String::new(),
                href: "/images",
            }],
        };
        let html = OverviewPage { live: &overview }.render().unwrap();
        assert!(html.contains("There are no images yet."), "{html}");
        assert!(!html.contains("<script>"), "{html}");
        assert!(html.contains(r#"href="/agents""#), "{html}");
    }
}
