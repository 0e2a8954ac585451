//! The first hour of a site from packages: one machine becomes the server, a blank one boots from it, is installed, and
//! becomes a client by the command that the server printed. Both are real systems with systemd, in QEMU.

mod long {
    use std::{path::PathBuf, time::Duration};

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
        let brought = brought_image(lab);
        let drive = format!("if=virtio,format=raw,readonly=on,file={}", brought.display());
        hardware.extra = vec!["-drive".into(), drive];
        Shell::sign_in(hardware.start(lab, OnReboot::Reboot).unwrap())
    }

    /// The image that the administrator brings along, on a disk without a partition table: behind one MiB of nothing. With
    /// one, the server would find two file systems of the UUID of its own.
    fn brought_image(lab: &Lab) -> PathBuf {
        let image = Variant::Small.image().unwrap();
        let disk = lab.dir().join("brought.raw");
        let [from, to] = [("if", &image.path), ("of", &disk)]
            .map(|(key, path)| format!("{key}={}", path.display()));
        tool::run(
            "dd",
            [from.as_str(), to.as_str(), "bs=1M", "seek=1", "conv=sparse", "status=none"],
        )
        .unwrap();
        disk
    }

    /// A PC with a blank disk for the system, and one with room to lend.
    fn blank(lab: &mut Lab) -> (Machine, String) {
        let [disk, lent] = ["pc.raw", "lent.raw"].map(|name| lab.dir().join(name));
        blank_disk(&disk, 4 << 30).unwrap();
        blank_disk(&lent, 40 << 30).unwrap();
        let mut hardware = Hardware::new("pc", 2, &disk);
        hardware.tap = Some(lab.tap().unwrap());
        let drive = format!("if=virtio,format=raw,file={}", lent.display());
        hardware.extra = vec!["-drive".into(), drive];
        (hardware.start(lab, OnReboot::Reboot).unwrap(), hardware.disk_serial())
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
        server.run("dd if=/dev/vdb of=lab.raw bs=1M skip=1 conv=sparse status=none");
        server.run_for(INSTALL, "cairn-server image add lab.raw --name lab --format raw", "");

        let (mut pc, serial) = blank(&mut lab);
        let code = pc.wait_for(&[CODE_LINE], &[], BOOT).unwrap().remove(0).groups.remove(1);
        server.run(&format!("cairn-server machine approve {code}"));
        let deploy =
            format!("cairn-server deploy lab --machine {code} --disk serial:{serial} --wait");
        server.run_for(INSTALL, &deploy, "");
        let mut pc = Shell::sign_in(pc);
        pc.run("mkfs.ext4 -q /dev/vdb && mkdir /var/lib/cairn-agent");
        pc.run("echo /dev/vdb /var/lib/cairn-agent ext4 defaults 0 2 >>/etc/fstab");
        pc.run("mount /var/lib/cairn-agent");
        pc.run(&join);
        pc.run("test $(systemctl is-active cairn-agent) = active");
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
