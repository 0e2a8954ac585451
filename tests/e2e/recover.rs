//! A server that burnt down, built anew from its clients on another machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_tests::{
    cairn::{Agent, Server, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::Host,
    process::{Process, Program},
    site::{NetworkBoot, Site},
};

const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// Clients are told after twenty seconds, and again after forty more.
const FOUND: Duration = Duration::from_secs(90);
const NAME: &str = "lab";

struct Burnt {
    site: Site,
    image: PathBuf,
    /// Another machine, at another address.
    host: Host,
    data_dir: PathBuf,
}

/// A site whose clients hold an image in two versions; then its server and all that it had is gone.
fn burnt(name: &str, clients: u8) -> Burnt {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    site.join(clients, "1GiB").unwrap();
    let image = |seed| {
        let wanted = Synthetic { size_mib: 96, files_mib: 40, seed };
        let path = site.lab.dir().join(format!("image{seed}.raw"));
        synthetic_ext4(&path, wanted).unwrap().path
    };
    let (first, second) = (image(1), image(2));
    site.add_image(&first, NAME).unwrap();
    site.add_image(&second, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    let all: Vec<usize> = (0..usize::from(clients)).collect();
    site.wait_for_stand_ins(&all).unwrap();
    site.server.process().kill().unwrap();
    let old = site.server.data_dir().to_owned();
    let key = site.lab.dir().join("recovery-key.txt");
    fs::copy(old.join("recovery-key.txt"), key).unwrap();
    fs::remove_dir_all(old).unwrap();
    let host = site.lab.host("phoenix", 200).unwrap();
    let data_dir = site.lab.dir().join("phoenix");
    Burnt { site, image: second, host, data_dir }
}

impl Burnt {
    fn recover(&self, key: &Path, peers: &[usize], options: &[&str]) -> Process {
        let mut program = Program::new("recover", binary("cairn-server").unwrap())
            .args(["recover", "--recovery-key"])
            .args([key])
            .args(["--data-dir"])
            .args([&self.data_dir])
            .args(options)
            .on(&self.host)
            .log(self.site.lab.dir().join("recover.log"));
        for peer in peers {
            program =
                program.args(["--peer", &self.site.agents[*peer].host().address().to_string()]);
        }
        program.start().unwrap()
    }

    fn key(&self) -> PathBuf {
        self.site.lab.dir().join("recovery-key.txt")
    }

    fn refused(&self, key: &Path, options: &[&str]) -> String {
        let mut process = self.recover(key, &[0], options);
        assert_eq!(process.wait(SOON).unwrap().code(), Some(1));
        process.transcript().text(0)
    }
}

#[test]
fn a_server_is_built_anew_elsewhere_and_its_clients_find_it_without_joining_again() {
    let mut burnt = burnt("burnt", 4);
    // As many as may be lost; the recovery hears of them from the others.
    burnt.site.agents[3].process().kill().unwrap();
    let mut recover = burnt.recover(&burnt.key(), &[1], &[]);
    recover.wait_success(INSTALL).unwrap();
    let said = recover.transcript().text(0);
    assert!(said.contains("back:  lab@1") && said.contains("back:  lab@2"), "{said}");
    // Its folder has a site now.
    let said = burnt.refused(&burnt.key(), &[]);
    assert!(said.contains("recover into an empty folder"), "{said}");

    let Burnt { mut site, image, host, data_dir } = burnt;
    site.server = Server::first_start(&site.lab, &host, &data_dir, &[]).unwrap();
    let exported = site.lab.dir().join("exported.raw");
    site.server.run(&["image", "export", NAME, exported.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(&image, &exported).unwrap(), None);
    // The one that was off knows the old address only, too.
    site.agents[3] =
        Agent::run(&site.lab, &site.agents[3].host().clone(), site.agents[3].state_dir()).unwrap();
    eventually("the clients to find the new server", FOUND, || {
        let agents = site.server.agents()?;
        let here = agents.iter().filter(|agent| agent.state == "approved" && agent.segments > 0);
        Ok((here.count() == 4).then_some(()))
    })
    .unwrap();
    let detail = site.wait_scattered(NAME).unwrap();
    assert_eq!(detail.versions.len(), 2);
    // It is a server like any other: it takes an image, and a client installs from the others.
    let installed = site.lab.dir().join("installed.raw");
    let url = format!("https://{}:8440", host.address());
    let mut installer = site.install_at(0, NAME, &installed, &url).unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
}

#[test]
fn what_cannot_be_read_is_named_and_nothing_is_given_up_unasked() {
    let mut burnt = burnt("burnt-badly", 4);
    let wrong = burnt.site.lab.dir().join("wrong.txt");
    fs::write(&wrong, cairn_array::wrap::Identity::generate().to_secret_text()).unwrap();
    let said = burnt.refused(&wrong, &[]);
    assert!(said.contains("not the recovery key of this site"), "{said}");
    let foreign = fs::read_to_string(burnt.key()).unwrap();
    let foreign: String = foreign
        .lines()
        .map(|line| match line.strip_prefix("# Site: ") {
            Some(_) => format!("# Site: {}\n", "0".repeat(64)),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(&wrong, foreign).unwrap();
    let said = burnt.refused(&wrong, &[]);
    assert!(said.contains("of another site"), "{said}");

    // One more than may be lost.
    for gone in [1, 2, 3] {
        burnt.site.agents[gone].process().kill().unwrap();
    }
    let said = burnt.refused(&burnt.key(), &[]);
    assert!(
        said.contains("lab@1 cannot be read") && said.contains("lab@2 cannot be read"),
        "{said}"
    );
    assert!(said.contains("--accept-loss"), "{said}");
    // Nobody serves half a site.
    let mut serve = Program::new("serve", binary("cairn-server").unwrap())
        .args(["serve", "--data-dir"])
        .args([&burnt.data_dir])
        .on(&burnt.host)
        .start()
        .unwrap();
    assert!(!serve.wait(SOON).unwrap().success());
    assert!(serve.transcript().text(0).contains("run `cairn-server recover`"));

    // Switched on again, they are enough, and it goes on where it ended.
    for back in [1, 2, 3] {
        let (host, state) = {
            let agent = &burnt.site.agents[back];
            (agent.host().clone(), agent.state_dir().to_owned())
        };
        burnt.site.agents[back] = Agent::run(&burnt.site.lab, &host, &state).unwrap();
        burnt.site.agents[back].process().wait_for_line("agent runs", SOON).unwrap();
    }
    let mut recover = burnt.recover(&burnt.key(), &[0], &[]);
    recover.wait_success(INSTALL).unwrap();
    assert!(recover.transcript().text(0).contains("back:  lab@2"));
}

#[test]
fn an_accepted_loss_leaves_the_rest_whole() {
    let mut burnt = burnt("burnt-partly", 4);
    for gone in [1, 2, 3] {
        burnt.site.agents[gone].process().kill().unwrap();
    }
    let mut recover = burnt.recover(&burnt.key(), &[0], &["--accept-loss"]);
    assert_eq!(recover.wait(INSTALL).unwrap().code(), Some(1));
    let said = recover.transcript().text(0);
    assert!(said.contains("lost:  lab@1") && said.contains("2 of 2"), "{said}");
    let Burnt { mut site, host, data_dir, .. } = burnt;
    site.server = Server::first_start(&site.lab, &host, &data_dir, &[]).unwrap();
    assert!(site.server.image(NAME).is_err());
    eventually("the client to find the new server", FOUND, || {
        let agents = site.server.agents()?;
        Ok(agents.iter().any(|agent| agent.segments == 0 && agent.seen.is_some()).then_some(()))
    })
    .unwrap();
}
