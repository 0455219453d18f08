//! Nothing that the program prints holds a secret that it was given, and it writes only where it
//! may.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use crate::support::{
    lake::{Lake, assert_same_rows},
    program::{Program, command, config_file},
    redis_server::RedisServer,
};

/// Each stands for another way in, so that a leak tells where it came from.
const SECRETS: [&str; 12] = [
    "pw-in-file-1f7",
    "pw-in-env-2e8",
    "pw-in-arg-3d9",
    "pw%2Din%2Durl-4ca",
    "pw-in-url-4ca",
    "pw-in-query-5b1",
    "auth-key-6a2",
    "auth-secret-793",
    "key-file-884",
    "unknown-975",
    "pw-of-import-a66",
    "pw-of-gigapi-b57",
];

fn assert_no_secret(what: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{what} shows {secret}:\n{text}");
    }
}

/// Runs to the end, or for three seconds, and looks through everything that was printed.
fn look_through(arguments: &[&str], variables: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
    let mut child = command()
        .args(arguments)
        .envs(variables.iter().copied())
        .env("RUST_BACKTRACE", "full")
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .spawn()
        .unwrap();
    for _ in 0..150 {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    let mut printed = String::new();
    for name in ["stdout", "stderr"] {
        let bytes = fs::read(folder.path().join(name)).unwrap();
        printed += &String::from_utf8_lossy(&bytes);
    }
    assert_no_secret(&format!("{arguments:?} {variables:?}"), &printed);
}

fn layers(lake: &Path) -> String {
    format!(
        "[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = {lake:?}\nauth_key = \"auth-key-6a2\"\nauth_secret = \"auth-secret-793\"\n"
    )
}

/// Every command that reads a configuration, where there is nothing to talk to.
const COMMANDS: [&[&str]; 8] = [
    &["check-config"],
    &["ls"],
    &["query", "db", "cpu"],
    &["plan"],
    &["once"],
    &["run"],
    &["verify"],
    &["import", "db", "cpu", "/nowhere"],
];

#[test]
fn no_command_and_no_error_shows_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    fs::create_dir(&lake).unwrap();
    let key = folder.path().join("key.pem");
    fs::write(
        &key,
        "-----BEGIN PRIVATE KEY-----\nkey-file-884\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    // Nobody listens on port 1.
    let urls = [
        "redis://:pw-in-file-1f7@127.0.0.1:1/0",
        "rediss://user:pw-in-file-1f7@127.0.0.1:1",
        "redis://user:pw%2Din%2Durl-4ca@127.0.0.1:1",
        "unix:///nowhere/redis.sock?pass=pw-in-query-5b1",
        "redis+sentinel://user:pw-in-file-1f7@127.0.0.1:1,127.0.0.1:2/main",
        "rediss+sentinel://:pw-in-file-1f7@127.0.0.1:1/main/3",
        "http://user:pw-in-file-1f7@127.0.0.1:1",
        "redis://:pw-in-file-1f7@127.0.0.1:no-port/x",
        "redis://:pw-in-file-1f7@/x/y?z=pw-in-query-5b1",
        "pw-in-file-1f7",
    ];
    for (place, url) in urls.iter().enumerate() {
        for (number, arguments) in COMMANDS.iter().enumerate() {
            // Each command with some of the URLs, each URL with some of the commands.
            if (place + number) % 3 != 0 {
                continue;
            }
            let text = format!(
                "[catalog]\ntype = \"redis\"\nurl = {url:?}\ntimeout = \"300ms\"\n{}[log]\nlevel = \"trace\"\n",
                layers(&lake)
            );
            let config = config_file(folder.path(), &text);
            let mut all = arguments.to_vec();
            all.extend(["--config", &config]);
            look_through(&all, &[]);
        }
    }
    let tls = format!(
        "[catalog]\ntype = \"redis\"\nurl = \"rediss://:pw-in-file-1f7@127.0.0.1:1\"\ntls_key = {key:?}\ntls_cert = {key:?}\n{}",
        layers(&lake)
    );
    let broken = [
        tls.clone(),
        format!("{tls}[log]\nlevel = \"unknown-975\"\n").replace("unknown-975", "loud"),
        "[catalog]\ntype = \"redis\"\npassword = \"unknown-975\"\n".to_owned(),
        format!(
            "[catalog\nurl = \"redis://:pw-in-file-1f7@host\"\n{}",
            layers(&lake)
        ),
        "[catalog]\ntype = \"json\"\nurl = [\"redis://:pw-in-file-1f7@host\"]\n".to_owned(),
        format!("{}ttl = \"auth-secret\"\n", layers(&lake)),
        layers(&lake).replace("\"auth-key-6a2\"", "[\"auth-key-6a2\"]"),
        layers(&lake).replace("auth_secret = ", "auth_secrets = "),
    ];
    for text in broken {
        let config = config_file(folder.path(), &text);
        for arguments in [&["check-config"][..], &["run"], &["ls"]] {
            let mut all = arguments.to_vec();
            all.extend(["--config", &config]);
            look_through(&all, &[]);
        }
    }
}

#[test]
fn what_comes_from_the_environment_and_the_command_line_is_not_shown_either() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    fs::create_dir(&lake).unwrap();
    let data = lake.to_str().unwrap();
    let in_env = [
        ("GIGAMERGE_CATALOG__TYPE", "redis"),
        (
            "GIGAMERGE_CATALOG__URL",
            "redis://:pw-in-env-2e8@127.0.0.1:1",
        ),
        ("GIGAMERGE_CATALOG__PASSWORD", "unknown-975"),
        ("GIGAMERGE_LAYERS__0__AUTH_SECRET", "auth-secret-793"),
    ];
    let of_gigapi = [
        ("GIGAPI_METADATA_TYPE", "redis"),
        (
            "GIGAPI_METADATA_URL",
            "redis://u:pw-of-gigapi-b57@127.0.0.1:1",
        ),
        ("GIGAPI_LAYERS_0_NAME", "hot"),
        ("GIGAPI_LAYERS_0_TYPE", "fs"),
        ("GIGAPI_LAYERS_0_URL", data),
        ("GIGAPI_LAYERS_0_AUTH_KEY", "auth-key-6a2"),
        ("GIGAPI_LAYERS_0_AUTH_SECRET", "auth-secret-793"),
    ];
    for arguments in [
        &["check-config"][..],
        &["ls"],
        &["once"],
        &["--help"],
        &["run"],
    ] {
        look_through(arguments, &in_env);
        look_through(arguments, &in_env[..2]);
        look_through(arguments, &of_gigapi);
    }
    let url = "redis://:pw-in-arg-3d9@127.0.0.1:1";
    for command in ["check-config", "ls", "plan", "run", "verify"] {
        let arguments = [
            command,
            "--data-dir",
            data,
            "--catalog-url",
            url,
            "--log-level",
            "trace",
        ];
        look_through(&arguments, &[]);
    }
    look_through(&["run", "--catalog-url", url, "--no-such-option"], &[]);
    look_through(
        &[
            "import",
            "db",
            "cpu",
            "redis://:pw-of-import-a66@127.0.0.1:1/0",
            "--from-catalog",
            "--data-dir",
            data,
        ],
        &[],
    );
}

#[test]
fn a_password_that_a_server_refuses_or_takes_is_in_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let port_text = port.to_string();
    let _server =
        RedisServer::start_with(&["--requirepass", "pw-in-file-1f7", "--port", &port_text]);
    for (password, expected) in [
        ("pw-in-file-1f7", "started"),
        ("unknown-975", "authentication failed"),
    ] {
        let text = format!(
            "[catalog]\ntype = \"redis\"\nurl = \"redis://:{password}@127.0.0.1:{port}\"\n{}[log]\nlevel = \"trace\"\n",
            layers(&lake.root)
        );
        let config = config_file(folder.path(), &text);
        let mut program = Program::start(&["run", "--config", &config]);
        std::thread::sleep(Duration::from_millis(1500));
        program.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(500));
        let log = program.log();
        assert_no_secret("run", &log);
        assert!(expected == "started" || log.contains(expected), "{log}");
        // A crash shows none either.
        program.signal(Signal::TERM);
        program.wait_for_exit(Duration::from_secs(20));
        assert_no_secret("run", &program.log());
        look_through(&["ls", "--config", &config], &[]);
        look_through(&["verify", "--json", "--config", &config], &[]);
    }
}

/// No account has this number, so whatever bears it was made by the daemon under test.
const USER: u32 = 54_321;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything below a folder that belongs to `USER`, other file systems left out.
fn files_of_user(below: &str) -> Vec<String> {
    let output = Command::new("find")
        .args([
            below, "-xdev", "(", "-path", "/proc", "-o", "-path", "/sys", ")", "-prune", "-o",
        ])
        .args(["-uid", &USER.to_string(), "-print"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn an_ordinary_user_that_may_write_nothing_but_the_lake_is_enough() {
    if !is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "root is needed to become another user"
        );
        eprintln!("not tested: root is needed to become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where the tests were built may be closed to others.
    let program = folder.path().join("gigamerge");
    fs::copy(env!("CARGO_BIN_EXE_gigamerge"), &program).unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..8 {
        lake.drop_file("cpu", seed, 200);
    }
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let mut folders = vec![lake.root.clone(), scratch.clone()];
    while let Some(path) = folders.pop() {
        chown(&path, Some(USER), Some(USER)).unwrap();
        if path.is_dir() {
            folders.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }}]\n\
         [drops]\ngrace = \"1s\"\n[worker]\nscratch_dir = {scratch:?}\n",
        lake.root
    );
    let config = config_file(folder.path(), &text);
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    std::thread::sleep(Duration::from_millis(2100));

    // A mount namespace of its own, in which everything but lake and scratch can only be read.
    let script = "mount --make-rprivate / 2>/dev/null
        for place in \"$1\" \"$2\"; do mount --bind \"$place\" \"$place\" || exit 99; done
        mount -o remount,bind,ro / || exit 99
        for place in \"$1\" \"$2\"; do mount -o remount,bind,rw \"$place\" || exit 99; done
        umask 0007; shift 2
        exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \"$@\"";
    let in_namespace = |arguments: &[&str]| {
        Command::new("unshare")
            .args(["--mount", "sh", "-c", script, &USER.to_string()])
            .args([&lake.root, &scratch])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap()
    };
    let probe = in_namespace(&["true"]);
    if !probe.status.success() {
        let reason = String::from_utf8_lossy(&probe.stderr).into_owned();
        assert!(
            std::env::var_os("CI").is_none(),
            "no mount namespace: {reason}"
        );
        eprintln!("not tested: a mount namespace cannot be made here: {reason}");
        return;
    }
    let closed = in_namespace(&["sh", "-c", "touch /tmp/x-54321 || touch /var/tmp/x-54321"]);
    assert!(!closed.status.success(), "the rest can be written");
    let program = program.display().to_string();
    for _ in 0..2 {
        let output = in_namespace(&[&program, "once", "--config", &config]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        std::thread::sleep(Duration::from_millis(2100));
    }
    let output = in_namespace(&[&program, "once", "--config", &config]);
    assert!(output.status.success());

    let files = lake.files("cpu");
    assert_eq!(files.len(), 1, "{files:?}");
    let merged = lake.partition("cpu").join(&files[0]);
    assert_same_rows(std::slice::from_ref(&merged), &copies);
    for file in [
        merged,
        lake.partition("cpu").join("metadata.json"),
        lake.root.join(".gigamerge.lock"),
    ] {
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(
            (meta.uid(), meta.mode() & 0o777),
            (USER, 0o640),
            "{}",
            file.display()
        );
    }
    assert!(fs::read_dir(&scratch).unwrap().next().is_none());
    let allowed = [
        lake.root.display().to_string(),
        scratch.display().to_string(),
    ];
    // The other mounts, which stayed as they were.
    for below in ["/tmp", "/var/tmp", "/dev/shm", "/run"] {
        for file in files_of_user(below) {
            assert!(
                allowed.iter().any(|place| file.starts_with(place.as_str())),
                "{file} was written"
            );
        }
    }
}

#[test]
fn scratch_is_private_while_a_merge_runs() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..12 {
        lake.drop_file("cpu", seed, 100_000);
    }
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"1 GiB\" }}]\n",
        lake.root
    );
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    let seen = std::cell::Cell::new(0);
    program.wait_until("scratch, then the merge", |_| {
        for left in lake.leftovers("cpu") {
            let Ok(meta) = fs::metadata(&left) else {
                continue;
            };
            assert_eq!(meta.mode() & 0o777, 0o700, "{}", left.display());
            seen.set(seen.get() + 1);
            for entry in fs::read_dir(&left).into_iter().flatten().flatten() {
                if let Ok(meta) = entry.metadata() {
                    assert_eq!(meta.mode() & 0o7137, 0, "{}", entry.path().display());
                }
            }
        }
        lake.files("cpu")
            .iter()
            .any(|name| name.ends_with(".2.parquet"))
    });
    assert!(seen.get() > 0, "no scratch was seen");
}

#[test]
fn nothing_is_written_through_a_link_out_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for table in ["scratch", "aside"] {
        for seed in 0..3 {
            lake.drop_file(table, seed, 100);
        }
    }
    let elsewhere: PathBuf = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // The scratch folder is a link.
    let tmp = lake.root.join("db/scratch/tmp");
    fs::remove_dir_all(&tmp).unwrap();
    symlink(&elsewhere, &tmp).unwrap();
    // What is written before metadata.json takes its place is a link, and so is the lock of the lake.
    let precious = folder.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    symlink(
        &precious,
        lake.partition("aside").join(".metadata.json.gigamerge"),
    )
    .unwrap();
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"1 GiB\" }}]\n",
        lake.root
    );
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("the table without a link", |_| {
        lake.files("aside")
            .iter()
            .any(|name| name.ends_with(".2.parquet"))
    });
    program.wait_for_log("leads out of its table's folder");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(fs::read_dir(&elsewhere).unwrap().next().is_none());
    assert_eq!(lake.files("scratch").len(), 3);
}
