//! Boot and network: how far each machine came from its firmware to the agent, and who else answers there.

use askama::Template;

use crate::text::{Ago, counted};

/// The page.
#[derive(Debug, Template)]
#[template(path = "boot.html")]
pub struct BootPage<'a> {
    pub live: &'a Boot,
}

/// Its live part, `/parts/boot`.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "boot_live.html")]
pub struct Boot {
    /// Where machines are answered.
    pub interface: Option<String>,
    /// Where boot files are served by HTTP.
    pub url: String,
    pub dhcp: Dhcp,
    /// What blank machines boot.
    pub kernel: Option<String>,
    /// Other DHCP servers that machines take addresses from.
    pub servers: Vec<Server>,
    pub survey: Option<Survey>,
    /// The latest first, those that stopped before the others.
    pub machines: Vec<Booting>,
    /// How many booted beside these.
    pub more: usize,
}

/// What is done about DHCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dhcp {
    /// Beside the site's server.
    Proxy,
    /// Addresses are given.
    Full,
    #[default]
    Off,
}

/// Another DHCP server.
#[derive(Clone, Debug)]
pub struct Server {
    pub address: String,
    pub seen: Ago,
}

/// What the last look at who else answers found.
#[derive(Clone, Debug)]
pub struct Survey {
    pub at: Ago,
    /// `good`, `warn`, `bad`.
    pub tone: &'static str,
    pub finding: String,
}

/// The steps from the firmware to the agent, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Asked,
    Answered,
    Loader,
    LoaderRan,
    Told,
    Kernel,
    Initramfs,
    Agent,
}

/// Where a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    OnItsWay,
    Arrived,
    OwnDisk,
    Waits,
    Stopped,
}

/// The last way of a machine.
#[derive(Clone, Debug)]
pub struct Booting {
    pub mac: String,
    pub name: Option<String>,
    /// `UEFI`, `10.77.0.50`, …
    pub details: Vec<String>,
    /// Its firmware verified what it booted; unknown until an agent told.
    pub secure_boot: Option<bool>,
    pub standing: Standing,
    pub steps: Vec<Step>,
    /// Why it stopped, and what to do.
    pub stopped: Option<(String, String)>,
    /// When it took its last step.
    pub at: Option<Ago>,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Asked,
        Self::Answered,
        Self::Loader,
        Self::LoaderRan,
        Self::Told,
        Self::Kernel,
        Self::Initramfs,
        Self::Agent,
    ];

    /// Of the API's word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "asked" => Self::Asked,
            "answered" => Self::Answered,
            "loader" => Self::Loader,
            "loader-ran" => Self::LoaderRan,
            "told" => Self::Told,
            "kernel" => Self::Kernel,
            "initramfs" => Self::Initramfs,
            "agent" => Self::Agent,
            _ => return None,
        })
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Asked => "Firmware asked",
            Self::Answered => "Answered",
            Self::Loader => "Loader sent",
            Self::LoaderRan => "Loader runs",
            Self::Told => "Told what to boot",
            Self::Kernel => "Kernel",
            Self::Initramfs => "Initramfs",
            Self::Agent => "Agent said hello",
        }
    }
}

impl Standing {
    const fn word(self) -> &'static str {
        match self {
            Self::OnItsWay => "on its way",
            Self::Arrived => "arrived",
            Self::OwnDisk => "booted its own disk",
            Self::Waits => "waits",
            Self::Stopped => "stopped",
        }
    }

    const fn tone(self) -> &'static str {
        match self {
            Self::OnItsWay | Self::Waits => "busy",
            Self::Arrived => "good",
            Self::OwnDisk => "quiet",
            Self::Stopped => "bad",
        }
    }
}

impl Booting {
    fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.mac)
    }

    /// Each step with its class and what it means, for those who do not see the class.
    fn way(&self) -> impl Iterator<Item = (Step, &'static str, &'static str)> {
        let last = self.steps.last().copied();
        let at = |step: Step| Step::ALL.iter().position(|known| *known == step);
        let reached = last.and_then(at);
        Step::ALL.into_iter().map(move |step| {
            let behind = at(step) <= reached && reached.is_some();
            match (self.steps.contains(&step), behind) {
                (true, _) if last == Some(step) && self.standing == Standing::Stopped => {
                    (step, "last", ", the last one")
                }
                (true, _) => (step, "done", ", done"),
                (false, true) => (step, "skipped", ", not needed or not seen"),
                (false, false) => (step, "ahead", ", not yet"),
            }
        })
    }
}

impl Boot {
    /// What is done for machines that boot.
    fn service(&self) -> String {
        let Some(interface) = &self.interface else {
            return "No network is answered: start the server with --boot-interface. Boot files are served to who asks for them.".to_owned();
        };
        match self.dhcp {
            Dhcp::Proxy => format!(
                "Machines on {interface} are told what to boot; their addresses come from the site's own DHCP server."
            ),
            Dhcp::Full => {
                format!("Machines on {interface} get their addresses and what to boot from here.")
            }
            Dhcp::Off => format!(
                "DHCP on {interface} is left to others, who have to name our boot files; loaders are served by TFTP and HTTP."
            ),
        }
    }

    fn spoken(&self) -> String {
        let stopped = self.machines.iter().filter(|it| it.standing == Standing::Stopped).count();
        let stopped = u64::try_from(stopped).unwrap_or(u64::MAX);
        match stopped {
            0 => String::new(),
            _ => format!("{} on the way", counted(stopped, "machine stopped", "machines stopped")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booting(standing: Standing) -> Booting {
        Booting {
            mac: "52:54:00:00:00:01".into(),
            name: None,
            details: vec!["UEFI".into(), "10.77.0.50".into()],
            secure_boot: None,
            standing,
            steps: vec![Step::Asked, Step::Loader],
            stopped: (standing == Standing::Stopped)
                .then(|| ("It does not run it.".into(), "Switch <b>it</b> off.".into())),
            at: Some(Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 120 }),
        }
    }

    #[test]
    fn where_a_machine_stopped_is_shown_with_what_to_do() {
        let machines = vec![booting(Standing::Stopped)];
        let live = Boot { interface: Some("eth1".into()), machines, ..Boot::default() };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "52:54:00:00:00:01",
            "UEFI · 10.77.0.50",
            "It does not run it.",
            "Switch &#60;b&#62;it&#60;/b&#62; off.",
            "2 min ago",
            "1 machine stopped on the way",
            "on eth1",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        let classes: Vec<_> = live.machines[0].way().map(|(_, class, _)| class).collect();
        let wanted = ["done", "skipped", "last", "ahead", "ahead", "ahead", "ahead", "ahead"];
        assert_eq!(classes, wanted);
    }

    #[test]
    fn one_that_goes_on_is_not_complained_about() {
        let live = Boot { machines: vec![booting(Standing::OnItsWay)], ..Boot::default() };
        let html = live.render().unwrap();
        assert!(html.contains("on its way") && !html.contains("banner bad"), "{html}");
        assert!(live.machines[0].way().all(|(_, class, _)| class != "last"));
        assert!(Boot::default().render().unwrap().contains("--boot-interface"));
    }

    #[test]
    fn every_step_has_its_word() {
        for word in
            ["asked", "answered", "loader", "loader-ran", "told", "kernel", "initramfs", "agent"]
        {
            assert!(Step::of_word(word).is_some(), "{word}");
        }
        assert_eq!(Step::of_word("x"), None);
    }
}
