use std::net::SocketAddr;

use clap::{Args as _, Parser, ValueEnum};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Proxy,
    Off,
}

#[derive(Debug, clap::Args)]
struct Options {
    #[arg(
        long,
        env = "CAIRN_TEST_NOBODY_SETS_LISTEN",
        default_value = "0.0.0.0:1",
        value_name = "ADDR:PORT"
    )]
    listen: SocketAddr,
    #[arg(long, value_enum, default_value_t = Mode::Proxy)]
    mode: Mode,
    #[arg(long, default_value_t = 3600)]
    lease_time: u32,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    standby: bool,
    #[arg(long, env = "CAIRN_TEST_STORE", value_name = "DIR")]
    store: Vec<PathBuf>,
    #[arg(long)]
    name: String,
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options() -> Vec<Arg> {
    let command = Options::augment_args(Command::new("x"));
    command.get_arguments().cloned().collect()
}

fn parse(text: &str) -> Result<Settings, String> {
    let parsed = Settings::parse(Path::new("/etc/x.toml"), text, &options());
    parsed.map_err(|error| error.to_string())
}

fn line(settings: &Settings, words: &[&str]) -> Options {
    let command = settings.fill(<Line as clap::CommandFactory>::command());
    let words = ["x"].iter().chain(words);
    let matches = command.try_get_matches_from(words).unwrap();
    <Line as clap::FromArgMatches>::from_arg_matches(&matches).unwrap().options
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "listen = \"10.0.0.1:2\"\nmode = \"off\"\nlease_time = 60\nstandby = true\nname = \"n\"\nstore = [\"a\", \"b\"]\n";
    let file = parse(text).unwrap();
    let told = line(&file, &[]);
    assert_eq!(told.listen, "10.0.0.1:2".parse().unwrap());
    assert_eq!((told.mode, told.lease_time, told.standby), (Mode::Off, 60, true));
    assert_eq!(told.store, [PathBuf::from("a"), PathBuf::from("b")]);
    let flags = ["--mode", "proxy", "--lease-time", "1", "--standby=false", "--store", "c"];
    let told = line(&file, &[&flags[..], &["--name", "m"]].concat());
    assert_eq!((told.mode, told.lease_time, told.standby), (Mode::Proxy, 1, false));
    assert_eq!((told.store, told.name.as_str()), (vec![PathBuf::from("c")], "m"));
    let told = line(&Settings::default(), &["--name", "m", "--standby"]);
    assert_eq!((told.mode, told.lease_time, told.standby), (Mode::Proxy, 3600, true));
}

#[test]
fn a_variable_with_commas_wins_over_a_list_of_the_file() {
    let mut settings = parse("store = [\"a\"]").unwrap();
    let said =
        |text: &'static str| move |name: &OsStr| (name == "CAIRN_TEST_STORE").then(|| text.into());
    settings.read_lists(&options(), said("")).unwrap();
    assert_eq!(line(&settings, &["--name", "n"]).store, [PathBuf::from("a")]);
    settings.read_lists(&options(), said("b, c")).unwrap();
    assert_eq!(line(&settings, &["--name", "n"]).store, [PathBuf::from("b"), PathBuf::from("c")]);
    let refused = settings.read_lists(&options(), said("b,")).unwrap_err().to_string();
    assert!(refused.starts_with("variable CAIRN_TEST_STORE cannot be \"\""), "{refused}");
}

#[test]
fn an_error_names_file_line_key_and_what_is_expected() {
    for (text, wanted) in [
        (
            "\nlistne = 1",
            "/etc/x.toml, line 2: there is no option \"listne\"; there are listen, mode, lease_time",
        ),
        ("listen = 1", "/etc/x.toml, line 1: listen is a text in quotes, like listen = \"…\""),
        ("lease_time = \"1\"", "line 1: lease_time is a whole number, like lease_time = 3600"),
        ("standby = \"yes\"", "standby is true or false, without quotes"),
        ("store = \"a\"", "store is a list of texts, like store = [\"…\", \"…\"]"),
        ("store = [1]", "store is a list of texts"),
        (
            "listen = \"here\"",
            "listen cannot be \"here\": invalid socket address syntax; it is ADDR:PORT",
        ),
        ("mode = \"on\"", "mode cannot be \"on\": it is one of proxy, off"),
        ("lease_time = -1", "lease_time cannot be \"-1\": "),
        ("[server]\nlisten = \"0.0.0.0:1\"", "there is no option \"server\""),
        ("a = 1\nb = = 2\n", "/etc/x.toml, line 2: "),
    ] {
        let refused = parse(text).unwrap_err();
        assert!(refused.contains(wanted), "{text}: {refused}");
    }
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let find = |words: &[&str], variable: Option<&str>| {
        let words = words.iter().map(OsString::from);
        Place::find(words, variable.map(OsString::from), "/nowhere/x.toml")
    };
    let place = |path: &str, named| Place { path: path.into(), named };
    assert_eq!(find(&["serve"], None), place("/nowhere/x.toml", false));
    assert_eq!(find(&["serve"], Some("")), place("/nowhere/x.toml", false));
    assert_eq!(find(&["serve"], Some("/v")), place("/v", true));
    assert_eq!(find(&["serve", "--config", "/a"], Some("/v")), place("/a", true));
    assert_eq!(find(&["serve", "--config=/a", "--", "--config", "/b"], None), place("/a", true));
    assert_eq!(find(&["--configure", "/b"], None), place("/nowhere/x.toml", false));
    assert_eq!(Settings::load(&find(&[], None), &[]).unwrap(), Settings::default());
    let missing = find(&["--config", "/nowhere/y.toml"], None);
    let refused = Settings::load(&missing, &[]).unwrap_err();
    assert_eq!(refused.to_string(), "read configuration file /nowhere/y.toml");
}
