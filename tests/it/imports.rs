//! ARCHITECTURE.md says which module may use which, and who owns each large foreign crate. The code agrees.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

type Names = BTreeSet<String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found.sort_unstable();
    found
}

/// A file's path below `src` and its code, without comments and unit tests.
fn code() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut all = Vec::new();
    for file in sources(&src) {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let name = file
            .strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        all.push((name, lines.collect::<Vec<_>>().join("\n")));
    }
    assert!(all.len() > 50, "the sources were not found");
    all
}

fn word(text: &str) -> &str {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// The first words of `{a::b, c::{d, e}}`.
fn group(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let mut words = Vec::new();
    for (place, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' => {}
            _ => continue,
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && c != '}' {
            words.push(word(text[place + 1..].trim_start()));
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Our modules that some code names.
fn modules_used(code: &str) -> Names {
    let mut used = Names::new();
    for (place, name) in code.match_indices("crate::") {
        let after = &code[place + name.len()..];
        if after.starts_with('{') {
            used.extend(group(after).into_iter().map(str::to_owned));
        } else {
            used.insert(word(after).to_owned());
        }
    }
    used
}

/// Whether some code names a foreign crate, in a `use` or before `::` elsewhere.
fn uses_crate(code: &str, name: &str) -> bool {
    let mut rest = String::new();
    let mut in_use = false;
    for line in code.lines() {
        let text = line.trim_start().trim_start_matches("pub ");
        if let Some(imported) = text.strip_prefix("use ") {
            if word(imported) == name {
                return true;
            }
            in_use = true;
        }
        if !in_use {
            rest.push_str(line);
            rest.push('\n');
        }
        in_use &= !text.contains(';');
    }
    let path = format!("{name}::");
    rest.match_indices(&path).any(|(place, _)| {
        let before = rest[..place].chars().next_back().unwrap_or(' ');
        !(before.is_alphanumeric() || before == '_' || before == ':')
    })
}

/// Rows of the table whose head begins with `head`: the names in backticks of each cell, and the text of the second.
fn table(head: &str) -> Vec<(Vec<String>, Vec<String>, String)> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let names = |cell: &str| {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let rows: Vec<_> = text
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            (names(cells[0]), names(cells[1]), cells[1].trim().to_owned())
        })
        .collect();
    assert!(!rows.is_empty(), "ARCHITECTURE.md has no table {head:?}");
    rows
}

#[test]
fn modules_use_only_what_the_import_table_allows_and_all_of_it() {
    let mut used: BTreeMap<String, Names> = BTreeMap::new();
    for (file, code) in code() {
        let module = word(&file).to_owned();
        if module != "main" && module != "lib" {
            let names = modules_used(&code);
            used.entry(module).or_default().extend(names);
        }
    }
    let mut unmentioned: Names = used.keys().cloned().collect();
    for (modules, allowed, text) in table("| module | may use |") {
        for module in modules {
            unmentioned.remove(&module);
            let mut found = used.get(&module).cloned().unwrap_or_default();
            found.remove(&module);
            match text.as_str() {
                "everything below" => {}
                _ => assert_eq!(
                    found,
                    allowed.iter().cloned().collect(),
                    "{module} uses the left ones, ARCHITECTURE.md allows the right ones"
                ),
            }
        }
    }
    assert!(
        unmentioned.is_empty(),
        "not in ARCHITECTURE.md: {unmentioned:?}"
    );
}

#[test]
fn each_large_foreign_crate_is_used_only_by_its_owners() {
    let code = code();
    for (crates, owners, _) in table("| crate | used in |") {
        for name in crates {
            let mut seen = Names::new();
            for (file, _) in code.iter().filter(|(_, code)| uses_crate(code, &name)) {
                let owner = owners.iter().find(|owner| {
                    file.strip_prefix(owner.as_str())
                        .is_some_and(|rest| rest.starts_with(['/', '.']))
                });
                assert!(
                    owner.is_some(),
                    "src/{file} uses {name}; ARCHITECTURE.md says {owners:?}"
                );
                seen.extend(owner.cloned());
            }
            assert_eq!(
                seen,
                owners.iter().cloned().collect(),
                "owners of {name} that use it, and those in ARCHITECTURE.md"
            );
        }
    }
}

#[test]
fn use_lines_are_understood_in_every_shape() {
    let code = "use crate::{\n    catalog::{Catalog, redis::RedisCatalog},\n    config::Config,\n};\nfn f() { crate::merge::go() }";
    let wanted = ["catalog", "config", "merge"].map(str::to_owned);
    assert_eq!(modules_used(code), Names::from(wanted));
    assert!(!uses_crate(code, "redis"));
    assert!(!uses_crate("let x = catalog::redis::all();", "redis"));
    assert!(uses_crate("let x = redis::cmd(\"PING\");", "redis"));
    assert!(uses_crate("pub use redis::Client;", "redis"));
}
