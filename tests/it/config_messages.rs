//! Every message that a bad configuration can give, as a user reads it.

use std::{
    fmt::Write,
    fs::Permissions,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use gigamerge::config::{Config, ConfigSources, Overrides, Secret};
use tempfile::TempDir;

/// A password that no message may repeat.
const PASSWORD: &str = "hunter2";

/// A folder with an empty lake, and the sources of one configuration.
struct Case {
    dir: TempDir,
    sources: ConfigSources,
}

impl Case {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir_all(dir.path().join("lake/inside")).unwrap();
        std::fs::create_dir(dir.path().join("lake-2")).unwrap();
        std::fs::write(dir.path().join("a-file"), "").unwrap();
        Self {
            dir,
            sources: ConfigSources::default(),
        }
    }

    /// A file in which `DIR` stands for the folder; the right `data_dir` stands in front.
    fn lake(self, text: &str) -> Self {
        self.file(&format!("data_dir = 'DIR/lake'\n{text}"))
    }

    fn file(mut self, text: &str) -> Self {
        let path = self.dir.path().join("gigamerge.toml");
        let dir = self.dir.path().display().to_string();
        std::fs::write(&path, text.replace("DIR", &dir)).unwrap();
        self.sources.file = Some(path);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        let value = value.replace("DIR", &self.dir.path().display().to_string());
        self.sources.env.insert(name.to_owned(), value);
        self
    }

    fn overrides(mut self, overrides: Overrides) -> Self {
        self.sources.overrides = overrides;
        self
    }

    /// The error and its causes as the program prints them, or the warnings.
    fn messages(&self) -> String {
        let text = match Config::load(&self.sources) {
            Ok(config) => config
                .warnings
                .iter()
                .fold(String::new(), |mut text, warning| {
                    writeln!(text, "warning: {warning}").unwrap();
                    text
                }),
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        assert!(!text.contains(PASSWORD), "a password is shown: {text}");
        text.replace(&self.dir.path().display().to_string(), "DIR")
    }
}

fn of_file(text: &str) -> String {
    Case::new().lake(text).messages()
}

fn all(cases: &[Case]) -> String {
    let messages: Vec<String> = cases.iter().map(Case::messages).collect();
    messages.join("\n--\n")
}

#[test]
fn files_that_cannot_be_read() {
    let missing = |name: &str| {
        let mut case = Case::new();
        case.sources.file = Some(case.dir.path().join(name));
        case
    };
    insta::assert_snapshot!(all(&[
        missing("nothing.toml"),
        missing("lake"),
        Case::new().file(&"# much\n".repeat(200_000)),
    ]));
}

#[test]
fn files_that_are_not_toml() {
    insta::assert_snapshot!(all(&[
        Case::new().file(&format!("[catalog]\nurl = \"redis://:{PASSWORD}@host\n")),
        Case::new().file(&format!("[catalog]\nurl = {PASSWORD}\n")),
        Case::new().file("[worker]\nlease = \"5s\"\nlease = \"6s\"\n"),
        Case::new().file("[worker\n"),
        Case::new().file("just words\n"),
        Case::new().file("worker.concurrency = 99999999999999999999\n"),
        Case::new().file("worker.concurrency = 1e999\n"),
    ]));
}

#[test]
fn unknown_settings() {
    insta::assert_snapshot!(of_file(
        r#"
        colour = 1
        wroker.concurrency = 1
        "a.b[7]" = 1
        "" = 1
        [catalog]
        urll = "x"
        [merge]
        enable = true
        [[merge.levels]]
        iteration = 1
        timeout = "10s"
        max_size = "1 MiB"
        max_sise = "1 MiB"
        [[tables.overrides]]
        match = "a.b"
        compresion = "lz4"
        [worker]
        concurency = 3
        "tab\there" = 3
        [log]
        fromat = "json"
        "#
    ));
}

#[test]
fn values_of_a_wrong_type() {
    insta::assert_snapshot!(all(&[
        Case::new().lake(
            r#"
            log = "info"
            [catalog]
            type = 3
            url = 3
            timeout = true
            [merge]
            enabled = "yes"
            levels = "all"
            [tables]
            order_by = [1, 2]
            time_column = ["a"]
            compression = {}
            row_group_rows = "many"
            overrides = [1]
            [worker]
            concurrency = "4"
            memory_budget = []
            scratch_dir = 1.5
            lease = ["60s"]
            max_attempts = -1
            writers = 7
            "#
        ),
        Case::new().file("data_dir = 7"),
        Case::new().file("layers = 7"),
        Case::new().file("[layers]\nname = 'a'"),
    ]));
}

#[test]
fn wrong_units() {
    insta::assert_snapshot!(of_file(
        r#"
        [[merge.levels]]
        iteration = 1
        timeout = "10"
        max_size = "104857600"
        [[merge.levels]]
        iteration = 2
        timeout = 100
        max_size = 400
        [[merge.levels]]
        iteration = 3
        timeout = "10M"
        max_size = "100M"
        [[merge.levels]]
        iteration = 4
        timeout = "ten seconds, or a few more than that, depending on the weather outside"
        max_size = "much"
        [[merge.levels]]
        iteration = 5
        timeout = 1.5
        max_size = "-1 MiB"
        [[merge.levels]]
        iteration = 6
        timeout = "1500ms"
        max_size = 1.5
        [[merge.levels]]
        iteration = 7
        timeout = -5
        max_size = -5
        [drops]
        grace = inf
        "#
    ));
}

#[test]
fn values_out_of_bounds() {
    insta::assert_snapshot!(of_file(
        r#"
        [catalog]
        timeout = "1ms"
        [[merge.levels]]
        iteration = 0
        timeout = "0s"
        max_size = "1 B"
        [[merge.levels]]
        iteration = 1001
        timeout = "1year"
        max_size = "1 EiB"
        [tables]
        row_group_rows = 5
        [worker]
        concurrency = 257
        lease = "4s"
        stop_timeout = "2h"
        max_attempts = 0
        [drops]
        grace = "90days"
        interval = "1ms"
        "#
    ));
}

#[test]
fn no_place_for_the_lake() {
    insta::assert_snapshot!(Case::new().messages());
}

#[test]
fn a_catalog_that_cannot_be() {
    let url =
        |url: &str| Case::new().lake(&format!("catalog = {{ type = 'redis', url = '{url}' }}"));
    insta::assert_snapshot!(all(&[
        Case::new().lake("catalog.type = 'reddis'"),
        Case::new().lake("catalog.type = 'redis'"),
        Case::new().lake(&format!("catalog.url = 'redis://:{PASSWORD}@host'")),
        url(&format!("{PASSWORD}@host")),
        url(&format!("http://:{PASSWORD}@host")),
        url(&format!("redis+sentinel://:{PASSWORD}@host")),
        url(&format!("redis+sentinel://:{PASSWORD}@host,/main/0")),
        url(&format!("redis+sentinel://:{PASSWORD}@host/main/first")),
        url(&format!("redis+sentinel://:a,{PASSWORD}@host:0/main")),
        url(&format!("redis://:{PASSWORD}@")),
        url(&format!("redis://:{PASSWORD}@host:port")),
        url(&format!("redis://:{PASSWORD}@host:70000")),
        url(&format!("redis://:{PASSWORD}@host/first")),
        url("redis://[::1"),
        url("redis://0.0.0.0:6379"),
        url(&format!("redis://:a/{PASSWORD}@host")),
        url(&format!("redis://:a#{PASSWORD}@host")),
        url("redis://host/0#insecure"),
    ]));
}

#[test]
fn certificates_that_cannot_be() {
    let tls = |url: &str, settings: &str| {
        let case = Case::new();
        std::fs::write(case.dir.path().join("ca.pem"), "").unwrap();
        case.lake(&format!(
            "[catalog]\ntype = 'redis'\nurl = '{url}'\n{settings}"
        ))
    };
    insta::assert_snapshot!(all(&[
        tls("redis://host", "tls_ca = 'DIR/ca.pem'"),
        tls("redis+sentinel://host/main", "tls_insecure = true"),
        tls("rediss://host", "tls_ca = 'DIR/missing.pem'"),
        tls("rediss://host", "tls_cert = 'DIR/ca.pem'"),
        tls("rediss://host", "tls_key = 'DIR/ca.pem'"),
        tls(
            "rediss://host",
            "tls_ca = 'DIR/ca.pem'\ntls_insecure = true"
        ),
        tls("rediss://host", "tls_insecure = 'yes'"),
    ]));
}

#[test]
fn sentinel_urls_that_are_right() {
    for url in [
        "redis+sentinel://host/main",
        "redis+sentinel://me:p%2Cw@a,b:1,[::1]:2/main/3",
        "rediss+sentinel://a,b/main/0",
    ] {
        let text = of_file(&format!("catalog = {{ type = 'redis', url = '{url}' }}"));
        assert_eq!(text, "", "{url}");
        // The catalog that will use it thinks the same.
        let config = gigamerge::config::RedisConfig::new(url);
        let policy = std::sync::Arc::new(crate::catalog_suite::policy());
        gigamerge::catalog::redis::RedisCatalog::connect(&config, policy).unwrap();
    }
}

#[test]
fn catalog_urls_that_are_right() {
    for url in [
        "redis://host",
        "redis://host:6379/0",
        "rediss://me:p@ss%2Fword@host:1/2",
        "redis://[::1]:6379/0",
        "redis://[::1]",
        "unix:///run/redis.sock?db=1",
        "redis://host/",
    ] {
        let text = of_file(&format!("catalog = {{ type = 'redis', url = '{url}' }}"));
        assert_eq!(text, "", "{url}");
        // The client that will use it thinks the same.
        redis::Client::open(url).unwrap();
    }
}

#[test]
fn layers_that_cannot_be() {
    insta::assert_snapshot!(all(&[
        Case::new().file("layers = []"),
        Case::new().file("[[layers]]\n[[layers]]\nname = ''\nurl = ''\n"),
        Case::new().file(
            "[[layers]]\nname = 'a'\nurl = 'DIR/lake'\n[[layers]]\nname = 'a'\nurl = 'DIR/lake/'\n"
        ),
        Case::new().file(&format!(
            "[[layers]]\nname = 'a:b'\ntype = 's3'\nurl = 's3://key:{PASSWORD}@host/bucket'\n\
             [[layers]]\nname = 'c'\nurl = 's3://key:{PASSWORD}@host/bucket'\n\
             [[layers]]\nname = 'd'\ntype = 'nfs'\nurl = 'https://key:{PASSWORD}@host'\n\
             [[layers]]\nname = 'e'\nurl = 'file://host/path'\nttl = '0s'\nauth_key = 7\n"
        )),
        Case::new().lake("[[layers]]\nname = 'a'\nurl = 'DIR/lake'\n"),
        Case::new().file(&"[[layers]]\n".repeat(65)),
    ]));
}

#[test]
fn folders_that_cannot_be_used() {
    let data_dir = |path: &str| Case::new().file(&format!("data_dir = {path:?}"));
    insta::assert_snapshot!(all(&[
        data_dir("DIR/nothing"),
        data_dir("file://DIR/a-file"),
        data_dir("DIR/a-file/below"),
        data_dir(""),
        data_dir("/"),
        data_dir("~/lake"),
        Case::new().file(r#"data_dir = "/lake\u0001""#),
        Case::new().lake("worker.scratch_dir = 'DIR/scratch'"),
    ]));
}

#[test]
fn a_folder_that_belongs_to_somebody_else() {
    const NOBODY: u32 = 65534;
    let case = Case::new();
    let dir = case.dir.path();
    std::fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir.join("lake"), Permissions::from_mode(0o555)).unwrap();
    let mut command = if rustix::process::getuid().is_root() {
        // root may write everywhere, so the program runs as nobody, from where nobody may run it.
        let program = dir.join("gigamerge");
        // Copied by another process: a test that forks now must not inherit the open file.
        let copied = Command::new("cp")
            .args([
                env!("CARGO_BIN_EXE_gigamerge").as_ref(),
                program.as_os_str(),
            ])
            .status()
            .unwrap();
        assert!(copied.success());
        let mut command = Command::new(program);
        command.uid(NOBODY);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_gigamerge"))
    };
    let output = command
        .args(["check-config", "--data-dir"])
        .arg(dir.join("lake"))
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let stderr = String::from_utf8(output.stderr).unwrap();
    insta::assert_snapshot!(stderr.replace(dir.to_str().unwrap(), "DIR"));
}

#[test]
fn levels_that_cannot_be() {
    let level = |iteration: u32| {
        format!("[[merge.levels]]\niteration = {iteration}\ntimeout = '10s'\nmax_size = '1 MiB'\n")
    };
    let schedule =
        |schedule: &str| Case::new().lake(&format!("{}schedule = {schedule:?}\n", level(1)));
    insta::assert_snapshot!(all(&[
        Case::new().lake("merge.levels = []"),
        Case::new().lake("[[merge.levels]]"),
        Case::new().lake(&(level(1) + &level(2) + &level(2) + &level(1))),
        Case::new().lake(&(level(4) + &level(1))),
        Case::new().lake(&level(2)),
        Case::new().lake(&(1..=33).map(level).collect::<String>()),
        schedule("*/5 * * * *"),
        schedule("0 0 0 31 2 *"),
        schedule(&"0 ".repeat(200)),
        schedule("every now and then"),
    ]));
}

#[test]
fn tables_that_cannot_be() {
    insta::assert_snapshot!(all(&[
        Case::new().lake(
            r#"
            [tables]
            order_by = []
            time_column = ""
            compression = "gzip"
            [[tables.overrides]]
            order_by = ["host up", "", "a", "a desc"]
            compression = "zstd(23)"
            [[tables.overrides]]
            match = "cpu"
            compression = "zsdt"
            [[tables.overrides]]
            match = "a.b"
            [[tables.overrides]]
            match = "a/b.c"
            row_group_rows = 1
            "#
        ),
        Case::new().lake(&format!(
            "tables.order_by = ['a'{}]\ntables.overrides = [{{ match = '{}.b', compression = 'lz4' }}]",
            ", 'b'".repeat(32),
            "a".repeat(500)
        )),
        Case::new().lake(
            r#"
            [tables]
            column_compression = { message = "gzip", "odd name" = 3, level = "zstd(0)" }
            bloom_filter_columns = ["a", "", "a"]
            index_columns = 7
            [[tables.overrides]]
            match = "a.b"
            column_compression = ["message"]
            "#
        ),
        Case::new().lake(
            r#"
            [tables]
            dedup = { by = ["host"], keep = "lst", kep = 1 }
            [[tables.overrides]]
            match = "a.b"
            dedup = { keep = "first" }
            [[tables.overrides]]
            match = "a.c"
            order_by = ["host", "t"]
            dedup = { by = ["t", "t"], keep = "max()" }
            [[tables.overrides]]
            match = "a.d"
            dedup = { by = ["t"] }
            [[tables.overrides]]
            match = "a.e"
            dedup = { by = [] }
            [[tables.overrides]]
            match = "a.f"
            order_by = ["host", "t"]
            dedup = { by = ["t", "x", "host"], keep = "max(x)" }
            "#
        ),
    ]));
}

#[test]
fn work_that_cannot_be_done() {
    insta::assert_snapshot!(of_file(
        r#"
        [worker]
        concurrency = 16
        memory_budget = "512 MiB"
        scratch_dir = "s3://bucket"
        writers = ["a:b", "ok"]
        [log]
        level = "inof"
        format = "jsn"
        "#
    ));
    insta::assert_snapshot!(all(&[
        Case::new().lake("worker.writers = []"),
        Case::new().lake("log.level = 'info,gigamerge::merge'"),
        Case::new().lake("log.level = 'gigamerge[{=info'"),
    ]));
}

#[test]
fn problems_from_our_environment_name_the_variable() {
    insta::assert_snapshot!(
        Case::new()
            .lake("")
            .env("GIGAMERGE_CATALOG__TYPE", "redis")
            .env("GIGAMERGE_CATALOG__URL", &format!("tcp://:{PASSWORD}@host"))
            .env("GIGAMERGE_CATALOG__TIMEOUT", "5")
            .env("GIGAMERGE_DROPS", "soon")
            .env("GIGAMERGE_LAYRES__0__URL", "/x")
            .env("GIGAMERGE_LOG__", "info")
            .env("GIGAMERGE_LOG__FORMAT", "xml")
            .env("GIGAMERGE_LOG__LÄVEL", "info")
            .env("GIGAMERGE_MERGE__ENABLED", "maybe")
            .env("GIGAMERGE_MERGE__LEVELS__0__TIMEOUT", "10")
            .env("GIGAMERGE_MERGE__LEVELS__6__TIMEOUT", "10s")
            .env("GIGAMERGE_MERGE__LEVELS__999999999999__TIMEOUT", "10s")
            .env("GIGAMERGE_WORKER_LEASE", "60s")
            .env("GIGAMERGE_WORKER__CONCURENCY", "2")
            .env("GIGAMERGE_WORKER__MAX_ATTEMPTS", "few")
            .env("GIGAMERGE_WORKER__WRITERS", "a, b:c")
            .messages()
    );
}

#[test]
fn problems_from_a_writers_environment_name_the_variable() {
    insta::assert_snapshot!(all(&[
        Case::new()
            .env("GIGAPI_ROOT", "/not/there")
            .env("GIGAPI_METADATA_TYPE", "ducklake")
            .env("GIGAPI_MERGE_TIMEOUT_S", "10s")
            .env("GIGAPI_NO_MERGES", "perhaps"),
        Case::new()
            .env("GIGAPI_METADATA_TYPE", "redis")
            .env("GIGAPI_LAYERS_0_NAME", "hot")
            .env("GIGAPI_LAYERS_0_GLOBAL", "perhaps")
            .env("GIGAPI_LAYERS_0_TTL", "soon")
            .env("GIGAPI_LAYERS_1_NAME", "s3")
            .env("GIGAPI_LAYERS_1_TYPE", "s3")
            .env(
                "GIGAPI_LAYERS_1_URL",
                &format!("s3://key:{PASSWORD}@host/bucket")
            ),
        Case::new()
            .env("GIGAPI_ROOT", "DIR/lake")
            .env("GIGAPI_LAYERS_1_NAME", "lost"),
    ]));
}

#[test]
fn problems_from_the_command_line_name_the_option() {
    insta::assert_snapshot!(
        Case::new()
            .overrides(Overrides {
                data_dir: Some("/not/there".to_owned()),
                catalog_url: Some(Secret(format!("localhost:{PASSWORD}"))),
                log_level: Some("loud".to_owned()),
                log_format: Some("xml".to_owned()),
            })
            .messages()
    );
}

#[test]
fn what_is_legal_and_may_surprise() {
    insta::assert_snapshot!(all(&[
        Case::new().file(&format!(
            "[[layers]]\nname = 'a'\nurl = 'DIR/lake'\nttl = '7d'\nauth_key = 'k'\nauth_secret = '{PASSWORD}'\n\
             [[layers]]\nname = 'b'\nurl = 'DIR/lake-2'\n"
        )),
        Case::new().lake("drops.grace = '5s'"),
        Case::new().lake(&format!(
            "catalog = {{ type = 'redis', url = 'rediss://:{PASSWORD}@host#insecure' }}"
        )),
        Case::new().lake("").env("LOGLEVEL", "chatty"),
        Case::new().lake("").env("GIGAPI_NO_MERGES", "true"),
        Case::new().lake("merge.enabled = false"),
        Case::new().file(
            "[[layers]]\nname = 'a'\nurl = 'DIR/lake'\n[[layers]]\nname = 'b'\nurl = 'DIR/lake/inside'\n\
             [catalog]\ntype = 'redis'\nurl = 'redis://host'\n"
        ),
        Case::new().lake(
            "[[merge.levels]]\niteration = 2\ntimeout = '1s'\nmax_size = '1 MiB'\n\
             [[merge.levels]]\niteration = 1\ntimeout = '1s'\nmax_size = '2 MiB'\n"
        ),
        Case::new()
            .file("[[layers]]\nname = 'a'\nurl = '/not/there'")
            .env("GIGAMERGE_DATA_DIR", "DIR/lake"),
        Case::new()
            .file("data_dir = '/not/there'")
            .env("GIGAMERGE_LAYERS__0__NAME", "a")
            .env("GIGAMERGE_LAYERS__0__URL", "DIR/lake"),
    ]));
}

fn gigamerge(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gigamerge"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("GIGA") || text == "LOGLEVEL" {
            command.env_remove(&name);
        }
    }
    command.args(arguments).output().unwrap()
}

#[test]
fn check_config_lists_every_problem_and_exits_with_78() {
    let case = Case::new().file(&format!(
        "[catalog]\ntype = 'redis'\nurl = '{PASSWORD}'\n[worker]\nlease = '1'\nconcurency = 2\n"
    ));
    let file = case.dir.path().join("gigamerge.toml");
    let output = gigamerge(&["check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains(PASSWORD), "{stderr}");
    insta::assert_snapshot!(stderr.replace(case.dir.path().to_str().unwrap(), "DIR"));
}

#[test]
fn check_config_prints_what_is_in_force_and_warns_aside() {
    let case = Case::new();
    let dir = case.dir.path().display().to_string();
    let case = case.file(&format!(
        "catalog = {{ type = 'redis', url = 'redis://me:{PASSWORD}@host:6379/0' }}\n\
         drops.grace = '1s'\nworker.concurrency = 2\nworker.writers = ['a', '']\nworker.scratch_dir = 'DIR'\n\
         [[merge.levels]]\niteration = 1\ntimeout = '90s'\nmax_size = '1.5 MiB'\nschedule = '0 0 3 * * *'\n\
         [[tables.overrides]]\nmatch = 'db.*'\norder_by = ['\"my host\" desc', 't nulls first']\ntime_column = 't'\ncompression = 'none'\nrow_group_rows = 1000\n\
         [[layers]]\nname = 'hot'\nurl = 'DIR/lake'\nttl = '36h'\n"
    ));
    let file = case.dir.path().join("gigamerge.toml");
    let file = file.to_str().unwrap();
    let output = gigamerge(&["check-config", "--config", file, "--log-format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    insta::assert_snapshot!(format!("{stdout}\n-- stderr\n{stderr}").replace(&dir, "DIR"));

    // What was printed is a configuration again, the same one.
    std::fs::write(file, &stdout).unwrap();
    let again = gigamerge(&["check-config", "--config", file]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), stdout);
}

#[test]
fn the_configuration_file_can_be_named_in_the_environment() {
    let case = Case::new().lake("worker.max_attempts = 77");
    let output = crate::support::program::command()
        .arg("check-config")
        .env("GIGAMERGE_CONFIG", case.dir.path().join("gigamerge.toml"))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("max_attempts = 77"), "{stdout}");
}
