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
    /// Until all are done.
    pub steps: Steps,
    /// The last day, hour by hour.
    pub history: History,
}

/// The way from an empty server to a machine that runs an image: what of it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// There is an image.
    pub images: bool,
    /// A client lends space.
    pub clients: bool,
    /// A machine runs an image.
    pub machines: bool,
    /// The server answers machines that boot from the network.
    pub boots: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    title: &'static str,
    what: &'static str,
    href: &'static str,
    action: &'static str,
    done: bool,
    /// The first that is not done.
    next: bool,
}

impl Steps {
    const fn all_done(self) -> bool {
        self.images && self.clients && self.machines
    }

    fn each(self) -> Vec<Step> {
        let boot = if self.boots {
            "Set a blank machine to boot from the network and switch it on. It shows up with a code; compare it with its screen, choose an image, install."
        } else {
            "This server does not answer machines that boot from the network: start it with --boot-interface and the name of the interface that they are on."
        };
        let mut steps = vec![
            Step {
                title: "Register an image",
                what: "The disk image of a machine that is set up the way you like it.",
                href: "/images",
                action: "Register one",
                done: self.images,
                next: false,
            },
            Step {
                title: "Let clients lend space",
                what: "They hold every image together, so that it survives the loss of this server. One command for each.",
                href: "/agents",
                action: "Add one",
                done: self.clients,
                next: false,
            },
            Step {
                title: "Install a machine",
                what: boot,
                href: if self.boots { "/machines" } else { "/boot" },
                action: if self.boots { "See who waits" } else { "See the network" },
                done: self.machines,
                next: false,
            },
        ];
        if let Some(next) = steps.iter_mut().find(|step| !step.done) {
            next.next = true;
        }
        steps
    }
}

/// What became of installs, hour by hour; the last is the present one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(pub Vec<Hour>);

/// Installs that ended in an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hour {
    pub done: u64,
    pub failed: u64,
}

/// A bar of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bar {
    x: usize,
    y: u64,
    height: u64,
    class: &'static str,
}

impl History {
    const HEIGHT: u64 = 60;
    const COLUMN: usize = 20;

    fn sum(&self, of: fn(&Hour) -> u64) -> u64 {
        self.0.iter().map(of).fold(0, u64::saturating_add)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|hour| *hour == Hour::default())
    }

    fn sentence(&self) -> String {
        let done = counted(self.sum(|hour| hour.done), "install is done", "installs are done");
        match self.sum(|hour| hour.failed) {
            0 => format!("{done}, none failed."),
            failed => format!("{done}, {failed} failed."),
        }
    }

    fn width(&self) -> usize {
        self.0.len() * Self::COLUMN
    }

    /// What is done stands on the line, what failed on top of it.
    fn bars(&self) -> Vec<Bar> {
        let most = self.0.iter().map(|hour| hour.done.saturating_add(hour.failed)).max();
        let most = most.unwrap_or(0).max(1);
        let scale = |count: u64| {
            let height = u128::from(count) * u128::from(Self::HEIGHT) / u128::from(most);
            u64::try_from(height).unwrap_or(Self::HEIGHT).max(u64::from(count > 0))
        };
        let bars = self.0.iter().enumerate().flat_map(|(place, hour)| {
            let (x, done, failed) = (place * Self::COLUMN, scale(hour.done), scale(hour.failed));
            let top = Self::HEIGHT.saturating_sub(done);
            [
                Bar { x, y: top, height: done, class: "done" },
                Bar { x, y: top.saturating_sub(failed), height: failed, class: "failed" },
            ]
        });
        bars.filter(|bar| bar.height > 0).collect()
    }
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
    fn the_first_steps_are_shown_until_they_are_done_the_next_one_marked() {
        let next =
            |steps: Steps| steps.each().into_iter().find(|step| step.next).map(|step| step.href);
        let mut steps = Steps { boots: true, ..Steps::default() };
        assert_eq!(next(steps), Some("/images"));
        steps.images = true;
        assert_eq!(next(steps), Some("/agents"));
        steps.clients = true;
        assert_eq!(next(steps), Some("/machines"));
        assert_eq!(next(Steps { boots: false, ..steps }), Some("/boot"));
        assert!(!steps.all_done());
        steps.machines = true;
        assert!(steps.all_done() && next(steps).is_none());
        // Whoever begins with clients is led on all the same.
        assert_eq!(next(Steps { clients: true, ..Steps::default() }), Some("/images"));
    }

    #[test]
    fn the_last_day_is_told_and_painted() {
        let hour = |done, failed| Hour { done, failed };
        let history = History(vec![hour(0, 0), hour(30, 0), hour(9, 1), hour(0, 1)]);
        assert_eq!(history.sentence().replace('\u{a0}', " "), "39 installs are done, 2 failed.");
        let bar = |x, y, height, class| Bar { x, y, height, class };
        let wanted = [
            bar(20, 0, 60, "done"),
            bar(40, 42, 18, "done"),
            bar(40, 40, 2, "failed"),
            bar(60, 58, 2, "failed"),
        ];
        assert_eq!(history.bars(), wanted);
        assert!(History(vec![Hour::default(); 24]).is_empty());
    }

    #[test]
    fn the_page_shows_the_sentence_first_and_escapes_what_machines_report() {
        let overview = Overview {
            verdict: judge(&[]),
            needs: needs(&[], &["<script>x</script>"], &[], 1),
            rooms: vec![],
            running: vec![],
            running_more: 0,
            steps: Steps::default(),
            history: History::default(),
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
