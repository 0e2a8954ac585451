//! Machines: those that wait with their code, and those that are known.

use askama::Template;

use crate::{
    groups::{Filter, Group},
    text::{Ago, Bytes, counted, listed},
};

/// The page.
#[derive(Debug, Template)]
#[template(path = "machines.html")]
pub struct MachinesPage<'a> {
    pub live: &'a Machines,
}

/// Its live part, `/parts/machines`.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "machines_live.html")]
pub struct Machines {
    pub waiting: Vec<Waiting>,
    /// How many wait beside these.
    pub waiting_more: usize,
    pub groups: Vec<Group>,
    /// What groups can be told to run.
    pub images: Vec<String>,
    /// Which machines are shown.
    pub filter: Filter,
    /// The page of these that is shown, and how many there are.
    pub known: Vec<Known>,
    pub found: usize,
    pub pages: usize,
    /// Every version that can be installed, in the order in which they are offered.
    pub versions: Vec<Choice>,
}

/// One of the things to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub value: String,
    pub label: String,
}

/// What a machine says it is. It selects, it never authorises.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Given by an administrator, or made of what it says.
    pub label: String,
    pub product: Option<String>,
    pub serial: Option<String>,
    pub uuid: Option<String>,
    pub macs: Vec<String>,
    /// `UEFI`, `BIOS`.
    pub firmware: Option<String>,
    pub secure_boot: bool,
}

/// A machine whose installer runs and waits for somebody.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Hex.
    pub machine: String,
    /// As the machine shows it on its screen.
    pub code: String,
    pub identity: Identity,
    pub address: String,
    pub disks: Vec<Disk>,
    /// The disk it can be installed to, and which.
    pub targets: Targets,
    /// The value of the version that is offered first.
    pub version: Option<String>,
    /// What it is to get.
    pub wish: Wish,
    /// Approved already: only an image is missing.
    pub approved: bool,
}

/// What a waiting machine is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Somebody chooses now.
    Open,
    /// Its operator asked for this image by name.
    Asked(String),
    /// This is scheduled for it.
    Scheduled(String),
}

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct Disk {
    pub path: String,
    pub size: Bytes,
    /// Model and serial number.
    pub what: String,
    /// Why it is not installed to.
    pub unfit: Option<&'static str>,
}

/// Which disks can be installed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// There is none.
    None,
    /// The only one.
    One(Choice),
    /// Somebody has to choose.
    Many(Vec<Choice>),
}

/// A machine that was seen before.
#[derive(Clone, Debug)]
pub struct Known {
    /// Hex.
    pub id: String,
    /// Given by an administrator.
    pub name: Option<String>,
    pub identity: Identity,
    /// `classroom, version 3`.
    pub installed: Option<String>,
    /// What it is to run, when it does not.
    pub drift: Option<String>,
    pub groups: Vec<String>,
    pub state: MachineState,
    pub seen: Ago,
}

/// What a known machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineState {
    Waiting,
    /// It has an install that has not begun.
    Scheduled,
    Installing,
    /// It comes up from a volume.
    Diskless,
    /// Nothing that we know of.
    Idle,
}

/// With more versions than this, one is named instead of chosen from a list.
const LISTED: usize = 20;

impl Waiting {
    fn offered(&self) -> &str {
        self.version.as_deref().unwrap_or_default()
    }

    fn offers(&self, choice: &Choice) -> bool {
        self.version.as_ref() == Some(&choice.value)
    }
}

impl Machines {
    /// `1 machine`, `14 machines`.
    fn count(&self) -> String {
        counted(u64::try_from(self.found).unwrap_or(u64::MAX), "machine", "machines")
    }

    const fn chooses_by_name(&self) -> bool {
        self.versions.len() > LISTED
    }

    /// The address of a page of what is shown.
    fn page(&self, page: &usize) -> String {
        format!("/machines{}", self.filter.at(*page))
    }

    fn of_group(name: &str) -> String {
        format!("/machines{}", Filter::of_group(name))
    }

    /// What is read aloud when it changes.
    fn spoken(&self) -> String {
        match self.waiting.as_slice() {
            [] => "No machine is waiting.".to_owned(),
            waiting => {
                let codes: Vec<_> = waiting.iter().map(|machine| machine.code.as_str()).collect();
                format!("Waiting: {}.", listed(&codes))
            }
        }
    }
}

impl MachineState {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waits",
            Self::Scheduled => "scheduled",
            Self::Installing => "installing",
            Self::Diskless => "comes up from a volume",
            Self::Idle => "idle",
        }
    }

    pub(crate) const fn tone(self) -> &'static str {
        match self {
            Self::Waiting => "warn",
            Self::Scheduled | Self::Installing => "busy",
            Self::Diskless | Self::Idle => "quiet",
        }
    }
}

impl Identity {
    /// All by which people tell machines apart, in one line.
    fn details(&self) -> String {
        let serial = self.serial.as_ref().map(|serial| format!("serial {serial}"));
        let macs = (!self.macs.is_empty()).then(|| self.macs.join(", "));
        [self.product.clone(), serial, macs, self.firmware.clone()]
            .into_iter()
            .flatten()
            .filter(|detail| *detail != self.label)
            .collect::<Vec<_>>()
            .join(" · ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Waiting {
        Waiting {
            machine: "aa".repeat(16),
            code: "Q9W1-DFWF".into(),
            identity: Identity {
                label: "OptiPlex 7010".into(),
                serial: Some("<script>alert(1)</script>".into()),
                macs: vec!["52:54:00:00:00:01".into()],
                firmware: Some("UEFI".into()),
                ..Identity::default()
            },
            address: "10.77.0.50".into(),
            disks: vec![Disk {
                path: "/dev/vda".into(),
                size: Bytes(20 << 30),
                what: "QEMU HARDDISK".into(),
                unfit: None,
            }],
            targets: Targets::One(Choice {
                value: "only".into(),
                label: "/dev/vda, 20 GiB".into(),
            }),
            version: Some("classroom@3".into()),
            wish: Wish::Open,
            approved: false,
        }
    }

    fn choices() -> Vec<Choice> {
        vec![
            Choice { value: "classroom@3".into(), label: "classroom, version 3 (newest)".into() },
            Choice { value: "classroom@2".into(), label: "classroom, version 2".into() },
        ]
    }

    #[test]
    fn a_waiting_machine_shows_its_code_and_can_be_installed() {
        let live =
            Machines { waiting: vec![waiting()], versions: choices(), ..Machines::default() };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "Q9W1-DFWF",
            "52:54:00:00:00:01",
            "/dev/vda",
            "20 GiB",
            r#"name="code" value="Q9W1-DFWF""#,
            r#"<option value="classroom@3" selected"#,
            ">Install<",
            "unverified",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        assert!(!html.contains("<script>"), "{html}");
    }

    #[test]
    fn with_several_disks_somebody_has_to_choose_and_without_one_nobody_can() {
        let several = Targets::Many(vec![
            Choice { value: "serial:A".into(), label: "/dev/sda".into() },
            Choice { value: "serial:B".into(), label: "/dev/sdb".into() },
        ]);
        let live = |targets| Machines {
            waiting: vec![Waiting { targets, ..waiting() }],
            versions: choices(),
            ..Machines::default()
        };
        let html = live(several).render().unwrap();
        assert!(html.contains("Choose a disk") && html.contains("serial:B"), "{html}");
        let html = live(Targets::None).render().unwrap();
        assert!(html.contains("no disk") && !html.contains(">Install<"), "{html}");
    }

    #[test]
    fn without_an_image_the_way_to_one_is_shown() {
        let live = Machines { waiting: vec![waiting()], ..Machines::default() };
        let html = live.render().unwrap();
        assert!(html.contains(r#"href="/images""#) && !html.contains(">Install<"), "{html}");
    }

    #[test]
    fn a_machine_that_knows_what_it_gets_is_only_approved() {
        for wish in [Wish::Asked("office@2".into()), Wish::Scheduled("office@2".into())] {
            let live = Machines {
                waiting: vec![Waiting { wish, ..waiting() }],
                versions: choices(),
                ..Machines::default()
            };
            let html = live.render().unwrap();
            assert!(html.contains("office@2") && html.contains(">Approve<"), "{html}");
            assert!(!html.contains("<select"), "{html}");
        }
    }

    #[test]
    fn a_known_machine_says_what_it_runs() {
        let known = Known {
            id: "bb".repeat(16),
            name: Some("pc-14".into()),
            identity: Identity { label: "pc-14".into(), ..Identity::default() },
            installed: Some("classroom, version 3".into()),
            drift: Some("classroom, version 4".into()),
            groups: vec!["lab-b".into()],
            state: MachineState::Idle,
            seen: Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 7200 },
        };
        let html = Machines { known: vec![known], found: 51, pages: 2, ..Machines::default() };
        let html = html.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "is to run classroom, version 4",
            r#"href="/machines?group=lab-b""#,
            "51 machines",
            r#"href="/machines?page=1""#,
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        assert!(html.contains("pc-14") && html.contains("classroom, version 3"), "{html}");
        assert!(html.contains("No machine is waiting"), "{html}");
        assert!(html.contains(">Rename<") && html.contains(r#"value="pc-14""#), "{html}");
    }
}
