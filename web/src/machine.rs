//! One machine: what it is made of, what it runs, and what was installed on it.

use askama::Template;

use crate::{
    deployments::Install,
    machines::{Disk, Known},
    text::Bytes,
};

/// The page.
#[derive(Clone, Debug, Template)]
#[template(path = "machine.html")]
pub struct MachinePage {
    pub known: Known,
    /// `12 × AMD Ryzen 5`.
    pub processor: Option<String>,
    pub memory: Option<Bytes>,
    pub disks: Vec<Disk>,
    pub cards: Vec<Card>,
    /// The newest first.
    pub installs: Vec<Install>,
}

/// A network card.
#[derive(Clone, Debug)]
pub struct Card {
    pub name: String,
    pub mac: Option<String>,
    pub driver: Option<String>,
    /// Of its link, when it had one.
    pub megabits: Option<u32>,
}

impl Card {
    fn link(&self) -> String {
        match self.megabits {
            None => "no link".to_owned(),
            Some(rate) if rate % 1000 == 0 => format!("{}\u{a0}Gbit/s", rate / 1000),
            Some(rate) => format!("{rate}\u{a0}Mbit/s"),
        }
    }

    fn details(&self) -> String {
        let details = [self.mac.clone(), self.driver.clone(), Some(self.link())];
        details.into_iter().flatten().collect::<Vec<_>>().join(" · ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        machines::{Identity, MachineState},
        text::Ago,
    };

    #[test]
    fn a_machine_shows_what_it_is_made_of_and_escapes_what_it_says() {
        let known = Known {
            id: "bb".repeat(16),
            name: Some("pc-14".into()),
            identity: Identity {
                label: "pc-14".into(),
                serial: Some("<script>alert(1)</script>".into()),
                ..Identity::default()
            },
            installed: Some("classroom, version 3".into()),
            drift: None,
            groups: vec!["lab-b".into()],
            state: MachineState::Idle,
            seen: Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 7200 },
        };
        let card = |megabits| Card {
            name: "eth0".into(),
            mac: Some("52:54:00:00:00:01".into()),
            driver: Some("e1000e".into()),
            megabits,
        };
        let page = MachinePage {
            known,
            processor: Some("12 × AMD Ryzen 5".into()),
            memory: Some(Bytes(16 << 30)),
            disks: Vec::new(),
            cards: vec![card(Some(2500)), card(Some(10_000)), card(None)],
            installs: Vec::new(),
        };
        let html = page.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "pc-14",
            "&#60;script&#62;",
            "16 GiB",
            "12 × AMD Ryzen 5",
            "52:54:00:00:00:01 · e1000e · 2500 Mbit/s",
            "10 Gbit/s",
            "no link",
            "classroom, version 3",
            r#"href="/machines?group=lab-b""#,
            "Nothing was installed on it by this server.",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        assert!(!html.contains("<script>"), "{html}");
    }
}
