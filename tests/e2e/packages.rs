//! The Debian packages that `cargo xtask package` made, in file trees of Debian that mmdebstrap makes.
//!
//! No systemd runs there: units are looked at, not started.

pub(crate) mod long {
    use std::{
        fs::{self, Permissions},
        os::unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::UnixDatagram,
        },
        path::{Path, PathBuf},
        process::{Command, Output},
        time::Duration,
    };

    use cairn_tests::{
        image::{LOGIN_PROMPT, small_with_packages},
        netns::Lab,
        paths,
        process::{Process, Program},
        qemu::{Hardware, OnReboot},
        tool,
    };

    const START: Duration = Duration::from_secs(30);
    const BOOT: Duration = Duration::from_secs(300);
    const COMMAND: Duration = Duration::from_secs(240);

    /// The package file of this name.
    pub(crate) fn package(name: &str) -> PathBuf {
        let folder = paths::packages();
        let files = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{folder:?}: {error}; run `cargo xtask package`"));
        let starts = format!("{name}_");
        let mut found = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&starts));
        found.next().unwrap_or_else(|| panic!("no {name} in {folder:?}; run `cargo xtask package`"))
    }

    /// A file tree with the smallest Debian and these packages of Debian's.
    struct System(tempfile::TempDir);

    impl System {
        fn new(suite: &str, packages: &str) -> Self {
            fs::create_dir_all(paths::labs()).unwrap();
            let folder = tempfile::tempdir_in(paths::labs()).unwrap();
            let root = folder.path().join("root");
            let options =
                ["--mode=root", "--variant=minbase", &format!("--include={packages}"), suite];
            let options = options.iter().map(AsRef::as_ref).chain([root.as_os_str()]);
            tool::run("mmdebstrap", options).unwrap();
            Self(folder)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join("root").join(path.trim_start_matches('/'))
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
        }

        /// Runs it there, in a network namespace of its own and without a word on standard input.
        fn output(&self, command: &[&str]) -> Output {
            let mut chroot = Command::new("unshare");
            chroot.args(["--net", "chroot"]).arg(self.path("/")).args(command);
            chroot.stdin(std::process::Stdio::null()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            chroot.env_remove("DEBIAN_FRONTEND").env("LC_ALL", "C").output().unwrap()
        }

        /// What it says on both ways; it must succeed.
        fn run(&self, command: &[&str]) -> String {
            let output = self.output(command);
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8(said).unwrap();
            assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
            said
        }

        fn install(&self, names: &[&str]) -> String {
            let mut command = vec!["dpkg".to_owned(), "--install".to_owned()];
            for name in names {
                let file = package(name);
                let inside = format!("/tmp/{name}.deb");
                fs::copy(file, self.path(&inside)).unwrap();
                command.push(inside);
            }
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            self.run(&command)
        }

        /// Mode, and whether it is root's.
        fn mode(&self, path: &str) -> (u32, bool) {
            let metadata = fs::symlink_metadata(self.path(path));
            let metadata = metadata.unwrap_or_else(|error| panic!("{path}: {error}"));
            (metadata.permissions().mode() & 0o7777, metadata.uid() == 0)
        }

        /// The line of a user in the list of users.
        fn user(&self, name: &str) -> Vec<String> {
            let users = self.read("/etc/passwd");
            let line = users.lines().find(|line| line.starts_with(&format!("{name}:")));
            line.unwrap_or_default().split(':').map(str::to_owned).collect()
        }

        fn exists(&self, path: &str) -> bool {
            fs::symlink_metadata(self.path(path)).is_ok()
        }
    }

    /// Installs each package on the smallest Debian with what `apt` would add, and runs its program.
    fn packages_work_on(suite: &str) {
        let system = System::new(suite, "ipxe");
        // Alone, as a client does with the package that its server offers.
        system.install(&["cairn-agent"]);
        program_is_in_place(&system, "cairn-agent", "agent.toml", "/var/lib/cairn-agent");
        let wanted = "/etc/systemd/system/multi-user.target.wants/";
        assert!(system.exists(&format!("{wanted}cairn-agent.service")));
        let unit = system.read("/usr/lib/systemd/system/cairn-agent.service");
        assert!(unit.contains("\nConditionPathExists=/var/lib/cairn-agent/agent.json\n"), "{unit}");

        system.install(&["cairn-server", "cairn-boot"]);
        program_is_in_place(&system, "cairn-server", "server.toml", "/var/lib/cairn");
        assert!(!system.exists(&format!("{wanted}cairn-server.service")), "`setup` enables it");
        let offered = fs::read(system.path("/usr/share/cairn/agent.deb")).unwrap();
        // Not assert_eq: it would print both.
        assert!(offered == fs::read(package("cairn-agent")).unwrap(), "another agent is offered");
        let doctor = ["cairn-server", "doctor", "--json", "--boot-dir", "/usr/share/cairn/boot"];
        let doctor = system.output(&[&doctor[..], &["--data-dir", "/var/lib/cairn"]].concat());
        let checks: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
        let payload = |check: &&serde_json::Value| check["name"] == "boot payload";
        let payload = checks.as_array().unwrap().iter().find(payload).unwrap();
        assert_eq!(payload["verdict"], "good", "{checks}");
    }

    fn program_is_in_place(system: &System, name: &str, conf: &str, home: &str) {
        let version = system.run(&[name, "--version"]);
        assert_eq!(version, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(system.mode(&format!("/usr/bin/{name}")), (0o755, true));
        let unit = format!("/usr/lib/systemd/system/{name}.service");
        assert_eq!(system.mode(&unit), (0o644, true));
        assert!(system.read(&unit).contains(&format!("\nUser={name}\n")));
        let user = system.user(name);
        assert_eq!(user[5..], [home, "/usr/sbin/nologin"]);
        let number: u32 = user[2].parse().unwrap();
        assert!((1..1000).contains(&number), "{user:?} is no user of the system");
        // systemd makes it, private.
        assert!(!system.exists(home));
        let conf = format!("/etc/cairn/{conf}");
        assert_eq!(system.mode(&conf), (0o644, true));
        let conffiles = system.run(&["dpkg-query", "--show", "--showformat=${Conffiles}", name]);
        assert!(conffiles.contains(&conf), "{conffiles}");
        for file in [
            format!("/usr/share/man/man1/{name}.1.gz"),
            format!("/usr/share/doc/{name}/copyright"),
            format!("/usr/share/doc/{name}/changelog.Debian.gz"),
            format!("/usr/share/bash-completion/completions/{name}"),
            format!("/usr/share/zsh/vendor-completions/_{name}"),
            format!("/usr/share/fish/vendor_completions.d/{name}.fish"),
        ] {
            // dpkg leaves documentation out where it is told to; mmdebstrap does not tell.
            assert_eq!(system.mode(&file), (0o644, true), "{file}");
        }
    }

    #[test]
    fn packages_work_on_debian_12() {
        packages_work_on("bookworm");
    }

    #[test]
    fn packages_work_on_debian_13() {
        packages_work_on("trixie");
    }

    /// As its unit starts it, on the network of a lab.
    #[test]
    fn server_boots_machines_with_one_capability() {
        let mut lab = Lab::new("packaged").unwrap();
        let host = lab.host("server", 1).unwrap();
        let system = System::new("bookworm", "ipxe");
        system.install(&["cairn-server", "cairn-boot"]);
        system.run(&["install", "-d", "-o", "cairn-server", "-m", "0700", "/var/lib/cairn"]);
        let notified = UnixDatagram::bind(system.path("/run/notify")).unwrap();
        notified.set_read_timeout(Some(START)).unwrap();
        fs::set_permissions(system.path("/run/notify"), Permissions::from_mode(0o777)).unwrap();
        let mut server = Program::new("cairn-server", "chroot")
            .args([system.path("/").as_os_str()])
            .args(["setpriv", "--reuid=cairn-server", "--regid=cairn-server", "--clear-groups"])
            .args(["--no-new-privs", "--bounding-set=-all,+net_bind_service"])
            .args(["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"])
            .args(["cairn-server", "serve", "--data-dir", "/var/lib/cairn"])
            .args(["--boot-interface", "eth0", "--boot-dir", "/usr/share/cairn/boot"])
            .env("NOTIFY_SOCKET", "/run/notify")
            .on(&host)
            .start()
            .unwrap();
        server.wait_for_line("^ready: https://", START).unwrap();
        let mut told = [0; 256];
        let length = notified.recv(&mut told).unwrap();
        assert!(told[..length].starts_with(b"READY=1\n"), "{:?}", String::from_utf8_lossy(&told));
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let rights = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        let user = system.user("cairn-server");
        assert_eq!(rights("Uid:"), user[2]);
        // CAP_NET_BIND_SERVICE is number 10.
        assert_eq!(u64::from_str_radix(&rights("CapBnd:"), 16).unwrap(), 1 << 10);
        server.terminate().unwrap();
    }

    #[test]
    fn purge_asks_nothing_and_keeps_keys() {
        let system = System::new("bookworm", "ipxe");
        system.install(&["cairn-agent", "cairn-server"]);
        for (name, home, key) in [
            ("cairn-server", "/var/lib/cairn", "secrets/ca.key"),
            ("cairn-agent", "/var/lib/cairn-agent", "key.pem"),
        ] {
            // An empty state folder is of no worth to anybody.
            fs::create_dir(system.path(home)).unwrap();
            let said = system.run(&["dpkg", "--purge", name]);
            assert!(!system.exists(home) && !said.contains("kept"), "{said}");

            system.install(&[name]);
            let user = system.user(name);
            let key = system.path(home).join(key);
            fs::create_dir_all(key.parent().unwrap()).unwrap();
            fs::write(&key, "secret").unwrap();
            let said = system.run(&["dpkg", "--purge", name]);
            assert!(said.contains(&format!("{name}: kept {home}")), "{said}");
            assert!(said.contains(&format!("rm -r {home}")), "{said}");
            assert_eq!(fs::read_to_string(&key).unwrap(), "secret");
            assert!(!system.exists(&format!("/usr/bin/{name}")));
            let links = format!("/etc/systemd/system/multi-user.target.wants/{name}.service");
            assert!(!system.exists(&links));

            // Whose the files are does not change, and a service that was removed is not masked for good.
            system.install(&[name]);
            system.run(&["dpkg", "--remove", name]);
            system.install(&[name]);
            assert!(!system.exists(&format!("/etc/systemd/system/{name}.service")));
            assert_eq!(system.user(name), user);
            assert_eq!(fs::read_to_string(&key).unwrap(), "secret");
        }
        // The same package once more is an upgrade to dpkg; a configuration that was edited stays.
        let conf = system.path("/etc/cairn/server.toml");
        let edited = format!("{}# edited\n", fs::read_to_string(&conf).unwrap());
        fs::write(&conf, &edited).unwrap();
        system.install(&["cairn-server"]);
        assert_eq!(fs::read_to_string(&conf).unwrap(), edited);
        system.run(&["dpkg", "--purge", "cairn-server", "cairn-agent"]);
        assert!(!Path::new(&conf).exists());
    }

    /// What an administrator types, and how the answer begins; nothing is waited for where that is empty.
    const TYPED: [(&str, &str); 22] = [
        ("exec bash --noediting", ""),
        ("export CAIRN_DATA_DIR=/var/lib/cairn", ""),
        (
            "echo enabled=$(systemctl is-enabled cairn-server cairn-agent)",
            "enabled=disabled enabled",
        ),
        (
            "systemctl start cairn-agent; echo agent=$(systemctl is-active cairn-agent)",
            "agent=inactive",
        ),
        ("D=/run/systemd/system/cairn-server.service.d; mkdir -p $D", ""),
        (
            "printf '[Service]\\nEnvironment=CAIRN_DATA_DIR=%s\\n' $CAIRN_DATA_DIR > $D/data.conf",
            "",
        ),
        (
            "systemctl daemon-reload; systemctl enable --now cairn-server; echo started=$?",
            "started=0",
        ),
        (NEW_TOKEN, ""),
        (JOIN, "joined=0"),
        (
            "systemctl start cairn-agent; until cairn-agent status; do sleep 1; done; echo up=$?",
            "up=0",
        ),
        ("cairn-agent lend 200MiB --reserve 64MiB; echo lent=$?", "lent=0"),
        ("cairn-agent limit --upload 50Mbit/s; echo limited=$?", "limited=0"),
        ("truncate -s 16M disk.raw && mkfs.ext4 -q disk.raw", ""),
        ("cairn-server image add disk.raw --name some; echo added=$?", "added=0"),
        ("cairn-server volume create data --size 64MiB; echo made=$?", "made=0"),
        (
            "U='cairn-server cairn-agent'; systemctl restart $U; echo again=$(systemctl is-active $U)",
            "again=active active",
        ),
        (
            "echo owners=$(stat -c %U /var/lib/cairn/* /var/lib/cairn-agent/* | sort -u)",
            "owners=cairn-agent cairn-server",
        ),
        ("cairn-agent leave; echo left=$?", "left=0"),
        (NEW_TOKEN, ""),
        (JOIN, "joined=0"),
        (
            "systemctl start cairn-agent; until cairn-agent status; do sleep 1; done; echo up=$?",
            "up=0",
        ),
        ("echo refused=$(journalctl -o cat -u 'cairn-*' | grep -ci 'not permitted')", "refused=0"),
    ];
    const NEW_TOKEN: &str = "T=$(cairn-server token create --auto-approve --json | grep -o 'cairn_join_[^\" ]*' | head -1)";
    const JOIN: &str =
        "cairn-agent join https://127.0.0.1:8440 $T --lend 300MiB --reserve 64MiB; echo joined=$?";

    /// Each right is tried by use: a filter that is too tight is only noticed by the call that it refuses.
    #[test]
    fn units_run_under_systemd_and_root_types_beside_them() {
        let lab = Lab::new("units").unwrap();
        let packages = ["cairn-server", "cairn-agent", "cairn-boot"].map(package);
        let image = small_with_packages(&packages, 2 << 30).unwrap();
        let disk = lab.dir().join("disk.raw");
        let copy = ["--sparse=always".as_ref(), image.path.as_os_str(), disk.as_os_str()];
        tool::run("cp", copy).unwrap();
        let mut machine = Hardware::new("machine", 1, &disk).start(&lab, OnReboot::Exit).unwrap();
        machine.wait_for(&[LOGIN_PROMPT], &[], BOOT).unwrap();
        machine.send("root\n").unwrap();
        machine.wait_for(&["# "], &[], BOOT).unwrap();
        for (command, answer) in TYPED {
            machine.send(&format!("{command}\n")).unwrap();
            if !answer.is_empty() {
                machine
                    .wait_for(&[answer], &[], COMMAND)
                    .unwrap_or_else(|error| panic!("{command}: {error:#}"));
            }
        }
        machine.switch_off().unwrap();
    }

    /// A container engine with everything that it keeps in folders of its own.
    struct Podman {
        /// Images and volumes.
        root: tempfile::TempDir,
        /// What runs. In /tmp: podman refuses a path of more than 50 characters.
        run: tempfile::TempDir,
    }

    impl Podman {
        fn new() -> Self {
            fs::create_dir_all(paths::labs()).unwrap();
            Self {
                root: tempfile::tempdir_in(paths::labs()).unwrap(),
                run: tempfile::tempdir_in("/tmp").unwrap(),
            }
        }

        /// runc, since crun does not run where a system has both kinds of control groups.
        fn options(&self) -> Vec<String> {
            let [root, run] = [&self.root, &self.run].map(|folder| folder.path().display());
            ["--cgroup-manager=cgroupfs", "--runtime=runc"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("--root={root}"), format!("--runroot={run}")])
                .collect()
        }

        fn command(&self, words: &[&str]) -> String {
            tool::finish(Command::new("podman").args(self.options()).args(words)).unwrap()
        }

        /// A server on the network of a lab, with the rights that it is said to need.
        fn serve(&self, name: &str, lab: &Lab, namespace: &str) -> Process {
            // podman raises the limits of processes, which root in a container may not.
            let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"];
            Program::new(name, "podman")
                .args(self.options())
                .args(["run", "--rm", "--name", name, "--volume", "cairn:/var/lib/cairn"])
                .args(limits)
                .args(["--cap-drop=all", "--cap-add=net_bind_service"])
                .args([format!("--network=ns:/run/netns/{namespace}")])
                .args(["cairn-server", "serve", "--boot-interface", "eth0"])
                .args(["--boot-dir", "/usr/share/cairn/boot"])
                .log(lab.dir().join(format!("{name}.log")))
                .start()
                .unwrap()
        }
    }

    impl Drop for Podman {
        fn drop(&mut self) {
            // Mounts of a test that failed would outlive it.
            let mut reset = Command::new("podman");
            drop(reset.args(self.options()).args(["rm", "--all", "--force"]).output());
        }
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test has no other way to say that it did nothing")]
    fn container_serves_and_keeps_its_site_in_the_volume() {
        if Command::new("podman").arg("--version").output().is_err() {
            eprintln!("no container engine (`apt install podman runc`): no image was built");
            return;
        }
        let mut lab = Lab::new("container").unwrap();
        let host = lab.host("server", 1).unwrap();
        let podman = Podman::new();
        // In place of debian:12-slim, which is not fetched.
        let base = lab.dir().join("base.tar");
        let options = ["--mode=root", "--variant=minbase", "bookworm"].map(AsRef::as_ref);
        tool::run("mmdebstrap", options.into_iter().chain([base.as_os_str()])).unwrap();
        podman.command(&["import", &base.display().to_string(), "cairn-base"]);
        let dockerfile = paths::workspace().join("Dockerfile").display().to_string();
        let packages = paths::packages().display().to_string();
        let build = ["build", "--isolation=chroot", "--build-arg=BASE=localhost/cairn-base"];
        let what = ["--tag=cairn-server", "--file", &dockerfile, &packages];
        podman.command(&[&build[..], &what[..]].concat());

        let mut first = podman.serve("first", &lab, host.namespace());
        first.wait_for_line("^sign in:", START).unwrap();
        first.wait_for_line("^ready: https://", START).unwrap();
        let status = podman.command(&["exec", "first", "cairn-server", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert!(status["directory"].as_u64().unwrap() > 0, "{status}");
        podman.command(&["stop", "--time=30", "first"]);
        first.wait(START).unwrap();

        // The site is there, so nothing is shown once more.
        let mut second = podman.serve("second", &lab, host.namespace());
        let ready = second.wait_for(&["^ready: https://"], &["^sign in:"], START);
        ready.unwrap();
        podman.command(&["stop", "--time=30", "second"]);
        second.wait(START).unwrap();
    }
}
