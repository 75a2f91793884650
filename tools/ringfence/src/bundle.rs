// SPDX-License-Identifier: GPL-2.0
//! Puts a fence around the process of an OCI bundle: its configuration is changed so that
//! any runtime starts this program, which confines itself and becomes the process.

use std::fs;
use std::path::Path;

use miette::{Context, IntoDiagnostic, Result, miette};
use serde_json::{Value, json};

use crate::kernel;
use crate::policy::Policy;

/// The places of this program and of the policy in the container.
const PROGRAM: &str = "/.ringfence/ringfence";
const POLICY: &str = "/.ringfence/policy.json";

/// The names of both files in the bundle.
const PROGRAM_FILE: &str = "ringfence";
const POLICY_FILE: &str = "ringfence.json";

/// The system calls that profiles of container engines refuse.
const SYSCALLS: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// Changes the bundle in `folder` so that its process is confined by `policy`. Doing it
/// again exchanges the policy.
///
/// # Errors
///
/// Fails if `folder` is no bundle, if its process or its seccomp profile is not what the
/// OCI specification says, or if a file cannot be written.
pub fn bundle(folder: &Path, policy: &Policy) -> Result<()> {
    policy.fence().map_err(|error| miette!("{error}"))?;
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} is no OCI bundle", folder.display()))?;
    let mut config: Value = serde_json::from_str(&text)
        .into_diagnostic()
        .wrap_err_with(|| path.display().to_string())?;
    confine(&mut config)?;

    let own = kernel::own_path()
        .into_diagnostic()
        .wrap_err("cannot find this program")?;
    let target = folder.join(PROGRAM_FILE);
    // A program that runs cannot be overwritten, but can be replaced.
    let new = folder.join(format!(".{PROGRAM_FILE}.new"));
    fs::copy(&own, &new)
        .into_diagnostic()
        .wrap_err_with(|| new.display().to_string())?;
    fs::rename(&new, &target)
        .into_diagnostic()
        .wrap_err_with(|| target.display().to_string())?;
    let target = folder.join(POLICY_FILE);
    fs::write(&target, policy.to_json())
        .into_diagnostic()
        .wrap_err_with(|| target.display().to_string())?;
    // The configuration is last, so that a bundle is never left with half of a fence.
    let new = folder.join(".config.json.new");
    let text = serde_json::to_string_pretty(&config).into_diagnostic()? + "\n";
    fs::write(&new, text)
        .into_diagnostic()
        .wrap_err_with(|| new.display().to_string())?;
    fs::rename(&new, &path)
        .into_diagnostic()
        .wrap_err_with(|| path.display().to_string())
}

/// Changes a configuration so that its process is confined.
fn confine(config: &mut Value) -> Result<()> {
    let process = config.get_mut("process").and_then(Value::as_object_mut);
    let process = process.ok_or_else(|| miette!("config.json has no process"))?;
    let arguments = process.get_mut("args").and_then(Value::as_array_mut);
    let arguments = arguments
        .filter(|arguments| !arguments.is_empty())
        .ok_or_else(|| miette!("config.json has no process.args"))?;
    if arguments[0] != PROGRAM {
        let before = [PROGRAM, "run", "--policy", POLICY, "--"];
        arguments.splice(0..0, before.map(Value::from));
    }
    process.insert("noNewPrivileges".to_string(), true.into());

    let config = config.as_object_mut().expect("it has a process");
    let mounts = config.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts
        .as_array_mut()
        .ok_or_else(|| miette!("mounts in config.json are no list"))?;
    for (file, place) in [(PROGRAM_FILE, PROGRAM), (POLICY_FILE, POLICY)] {
        mounts.retain(|mount| mount.get("destination") != Some(&Value::from(place)));
        mounts.push(json!({
            "destination": place,
            "type": "bind",
            "source": file,
            "options": ["bind", "ro", "nosuid", "nodev"],
        }));
    }
    match config
        .get_mut("linux")
        .and_then(|linux| linux.get_mut("seccomp"))
    {
        None | Some(Value::Null) => Ok(()),
        Some(seccomp) => allow_system_calls(seccomp),
    }
}

/// Takes the system calls out of all rules of a profile, and adds one that allows them.
fn allow_system_calls(seccomp: &mut Value) -> Result<()> {
    let seccomp = seccomp
        .as_object_mut()
        .ok_or_else(|| miette!("linux.seccomp is no object"))?;
    let rules = seccomp.entry("syscalls").or_insert_with(|| json!([]));
    let rules = rules
        .as_array_mut()
        .ok_or_else(|| miette!("linux.seccomp.syscalls is no list"))?;
    for rule in rules.iter_mut() {
        if let Some(names) = rule.get_mut("names").and_then(Value::as_array_mut) {
            names.retain(|name| !SYSCALLS.iter().any(|call| name == call));
        }
    }
    // The specification wants a rule to have names.
    rules.retain(|rule| {
        rule.get("names")
            .and_then(Value::as_array)
            .is_none_or(|names| !names.is_empty())
    });
    rules.push(json!({ "names": SYSCALLS, "action": "SCMP_ACT_ALLOW" }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Op;

    fn config() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "unknown": {"kept": [1, 2]},
            "process": {"args": ["node", "server.js"], "cwd": "/"},
            "linux": {"seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["io_uring_setup"], "action": "SCMP_ACT_ERRNO"},
                    {"names": ["bpf", "io_uring_enter"], "action": "SCMP_ACT_ERRNO"},
                ],
            }},
        })
    }

    #[test]
    fn the_process_is_started_by_this_program() {
        let mut config = config();
        confine(&mut config).unwrap();
        let arguments = [
            "/.ringfence/ringfence",
            "run",
            "--policy",
            "/.ringfence/policy.json",
            "--",
            "node",
            "server.js",
        ];
        assert_eq!(config["process"]["args"], json!(arguments));
        assert_eq!(config["process"]["noNewPrivileges"], json!(true));
        assert_eq!(config["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(config["mounts"][0]["source"], json!("ringfence"));
        assert_eq!(config["unknown"], json!({"kept": [1, 2]}));
    }

    #[test]
    fn the_profile_allows_the_system_calls() {
        let mut config = config();
        confine(&mut config).unwrap();
        assert_eq!(
            config["linux"]["seccomp"]["syscalls"],
            json!([
                {"names": ["bpf"], "action": "SCMP_ACT_ERRNO"},
                {"names": SYSCALLS, "action": "SCMP_ACT_ALLOW"},
            ])
        );
    }

    #[test]
    fn doing_it_twice_changes_nothing_more() {
        let mut once = config();
        confine(&mut once).unwrap();
        let mut twice = once.clone();
        confine(&mut twice).unwrap();
        assert_eq!(once, twice);
    }

    #[test]
    fn a_bundle_without_seccomp_gets_none() {
        let mut config = config();
        config["linux"] = json!({});
        confine(&mut config).unwrap();
        assert_eq!(config["linux"], json!({}));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        assert!(confine(&mut json!({})).is_err());
        assert!(confine(&mut json!({"process": {"args": []}})).is_err());
        let folder = tempfile::tempdir().unwrap();
        let error = bundle(folder.path(), &Policy::allowing([Op::READ])).unwrap_err();
        assert!(error.to_string().contains("is no OCI bundle"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_are_put_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("config.json"), config().to_string()).unwrap();
        let policy = Policy::allowing([Op::READ]);
        bundle(folder.path(), &policy).unwrap();
        assert_eq!(Policy::read(&path("ringfence.json")).unwrap(), policy);
        assert!(path("ringfence").exists());
        let mut files: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        files.sort();
        assert_eq!(files, ["config.json", "ringfence", "ringfence.json"]);
    }
}
