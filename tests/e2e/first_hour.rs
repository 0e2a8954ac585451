//! The first hour of a site from packages: one machine becomes the server, a blank one boots from it, is installed, and
//! becomes a client by the command that the server printed. Both are real systems with systemd, in QEMU.

mod long {
    use std::{path::Path, time::Duration};

    use cairn_tests::{
        dhcpd::Dhcpd,
        image::{LOGIN_PROMPT, Variant, small_with_packages},
        netns::Lab,
        qemu::{Hardware, Machine, OnReboot, blank_disk},
        site::CODE_LINE,
        tool,
    };

    use crate::packages::long::package;

    const BOOT: Duration = Duration::from_secs(400);
    const COMMAND: Duration = Duration::from_secs(300);
    const INSTALL: Duration = Duration::from_secs(900);
    /// Free room on the server's disk: an image file, and the same once more in the store.
    const ROOM: u64 = 2 << 30;

    /// A shell on a machine's serial line.
    struct Shell {
        machine: Machine,
        commands: usize,
    }

    impl Shell {
        /// Waits for the login and signs in.
        fn sign_in(machine: Machine) -> Self {
            let mut shell = Self { machine, commands: 0 };
            shell.wait_for_login();
            shell
        }

        fn wait_for_login(&mut self) {
            self.machine.wait_for(&[LOGIN_PROMPT], &[], BOOT).unwrap();
            self.machine.send("root\n").unwrap();
            self.machine.wait_for(&["# "], &[], BOOT).unwrap();
            // Without line editing the serial line shows what is printed, and nothing else.
            self.machine.send("exec bash --noediting\nstty -echo\n").unwrap();
        }

        /// Runs a command line that must succeed within `patience`; the groups of `pattern` in what it prints.
        fn run_for(&mut self, patience: Duration, line: &str, pattern: &str) -> Vec<String> {
            self.commands += 1;
            let end = format!("command {} ended with 0", self.commands);
            let failed = format!("command {} ended with [1-9]", self.commands);
            let tell = format!("echo command {} ended with $?", self.commands);
            self.machine.send(&format!("{line}; {tell}\n")).unwrap();
            let mut patterns = vec![pattern, &end];
            patterns.retain(|pattern| !pattern.is_empty());
            let found = self
                .machine
                .wait_for(&patterns, &[&failed], patience)
                .unwrap_or_else(|error| panic!("{line}: {error:#}"));
            if pattern.is_empty() { Vec::new() } else { found[0].groups.clone() }
        }

        fn run(&mut self, line: &str) {
            self.run_for(COMMAND, line, "");
        }

        /// The first group of `pattern` in what `line` prints.
        fn read(&mut self, line: &str, pattern: &str) -> String {
            self.run_for(COMMAND, line, pattern).remove(1)
        }

        fn restart(&mut self) {
            self.machine.send("systemctl reboot\n").unwrap();
            self.wait_for_login();
        }
    }

    fn server(lab: &mut Lab) -> Shell {
        let image =
            small_with_packages(&["cairn-server", "cairn-agent", "cairn-boot"].map(package), ROOM);
        let disk = lab.dir().join("server.raw");
        let image = image.unwrap();
        let copy = ["--sparse=always".as_ref(), image.path.as_os_str(), disk.as_os_str()];
        tool::run("cp", copy).unwrap();
        let mut hardware = Hardware::new("server", 1, &disk);
        hardware.tap = Some(lab.tap().unwrap());
        // The image that the administrator brings along.
        let lab_image = Variant::Small.image().unwrap();
        hardware.extra = vec![
            "-drive".into(),
            format!("if=virtio,format=raw,readonly=on,file={}", lab_image.path.display()),
        ];
        Shell::sign_in(hardware.start(lab, OnReboot::Reboot).unwrap())
    }

    fn blank(lab: &mut Lab, disk: &Path) -> Machine {
        blank_disk(disk, 4 << 30).unwrap();
        let mut hardware = Hardware::new("pc", 2, disk);
        hardware.tap = Some(lab.tap().unwrap());
        hardware.start(lab, OnReboot::Reboot).unwrap()
    }

    #[test]
    fn packages_make_a_server_and_a_blank_machine_its_client() {
        let mut lab = Lab::new("first").unwrap();
        let host = lab.host("dhcp", 2).unwrap();
        let _dhcpd = Dhcpd::start(&lab, &host).unwrap();
        let mut server = server(&mut lab);
        server.run("I=$(basename /sys/class/net/e*); networkctl status $I --no-pager | head -3");
        server.run("until ip -4 address show dev $I | grep -q inet; do sleep 1; done");
        let setup = "cairn-server setup --interface $I";
        let join = server.read(setup, r"join: +(f=.*cairn-agent join https://\S+ \S+ --lend \S+)");
        server.run("test $(systemctl is-enabled cairn-server) = enabled");
        server.read(setup, "(Nothing was to do)");
        server.run("cp --sparse=always /dev/vdb lab.raw");
        server.run_for(INSTALL, "cairn-server image add lab.raw --name lab --format raw", "");

        let disk = lab.dir().join("pc.raw");
        let mut pc = blank(&mut lab, &disk);
        let code = pc.wait_for(&[CODE_LINE], &[], BOOT).unwrap().remove(0).groups.remove(1);
        server.run(&format!("cairn-server machine approve {code}"));
        server.run_for(INSTALL, &format!("cairn-server deploy lab --machine {code} --wait"), "");
        let mut pc = Shell::sign_in(pc);
        pc.run(&join);
        pc.run("test $(systemctl is-active cairn-agent) = active");
        pc.run("cairn-agent lend 300MiB --reserve 64MiB");
        server.run("A=$(cairn-server agent list --json | grep -o '\"id\": *\"[0-9a-f]*' | grep -o '[0-9a-f]*$' | tail -1)");
        server.run("cairn-server agent approve $A");
        server.run("until cairn-server image show lab --json | grep -q '\"complete\": *true'; do sleep 1; done");

        server.restart();
        pc.restart();
        server.run("until cairn-server status; do sleep 1; done");
        pc.run("until cairn-agent status; do sleep 1; done");
        pc.run("cairn-agent images | grep lab");
        server.run("test $(systemctl is-active cairn-server) = active");
        pc.machine.switch_off().unwrap();
        server.machine.switch_off().unwrap();
    }
}
