//! Discovery, on scripted readings and processes.

use super::*;
use crate::{
    source::script::{Script, ScriptedProcesses},
    tenant::identity::Vmm,
};

fn registry(configured: &[config::Tenant]) -> Registry {
    let pattern = Regex::new("^droplet-(?<id>[0-9]+)$").unwrap();
    Registry::new(configured, Some(pattern))
}

fn step(registry: &mut Registry, script: &mut Script, processes: &ScriptedProcesses) -> bool {
    registry.follow(script, processes);
    let readings = script.all();
    registry.adopt(&readings, script, processes)
}

fn keys(registry: &Registry) -> Vec<&str> {
    registry
        .tenants()
        .map(|tenant| tenant.key.as_str())
        .collect()
}

#[test]
fn a_vms_vcpus_become_one_droplet_with_its_other_threads() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "qemu-system-x86_64 -name guest=droplet-8 -uuid u1");
    script.vcpu(1, 100);
    script.vcpu(2, 100);
    let mut registry = registry(&[]);
    assert!(step(&mut registry, &mut script, &processes));
    let tenant = registry.tenants().next().unwrap().clone();
    assert_eq!(tenant.key, "qemu:u1");
    assert_eq!(
        (tenant.name.as_str(), tenant.droplet_id.as_str()),
        ("droplet-8", "8")
    );
    assert_eq!(
        tenant.kind,
        Kind::Droplet {
            tgid: 100,
            vmm: Vmm::Qemu
        }
    );
    assert_eq!(tenant.vcpus, 2);
    assert_eq!(script.watched_processes, vec![(100, tenant.index)]);
    // Nothing new: nothing to do, and the counts hold.
    script.thread(3, 100, tenant.index);
    assert!(!step(&mut registry, &mut script, &processes));
    let tenant = registry.tenants().next().unwrap();
    assert_eq!((tenant.threads, tenant.vcpus), (3, 2));
}

#[test]
fn a_later_vcpu_joins_its_droplet() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "kvm -name a");
    script.vcpu(1, 100);
    let mut registry = registry(&[]);
    step(&mut registry, &mut script, &processes);
    script.vcpu(2, 100);
    assert!(step(&mut registry, &mut script, &processes));
    assert_eq!(keys(&registry), ["qemu:a"]);
    assert_eq!(script.slots[&2].tenant, script.slots[&1].tenant);
    assert_eq!(script.watched_processes.len(), 1);
}

#[test]
fn two_vms_of_one_identity_do_not_share_a_key() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "kvm -name a");
    processes.run(200, "kvm -name a");
    script.vcpu(1, 100);
    script.vcpu(2, 200);
    let mut registry = registry(&[]);
    step(&mut registry, &mut script, &processes);
    assert_eq!(keys(&registry), ["qemu:a", "qemu:a#2"]);
    // Once both are gone the name is free again.
    script.end(1);
    script.end(2);
    step(&mut registry, &mut script, &processes);
    assert_eq!(registry.forget_ended().len(), 2);
    processes.run(300, "kvm -name a");
    script.slots.clear();
    script.vcpu(3, 300);
    step(&mut registry, &mut script, &processes);
    assert_eq!(keys(&registry), ["qemu:a"]);
}

#[test]
fn a_droplet_ends_with_its_last_thread_and_is_kept_until_forgotten() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "kvm -name a");
    script.vcpu(1, 100);
    let mut registry = registry(&[]);
    step(&mut registry, &mut script, &processes);
    script.end(1);
    step(&mut registry, &mut script, &processes);
    assert!(registry.tenants().next().unwrap().ended);
    assert_eq!(registry.forget_ended(), vec![1]);
    assert!(keys(&registry).is_empty());
}

#[test]
fn an_unknown_vmm_is_reported_and_one_that_cannot_be_watched_too() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "/opt/vmm --thing");
    script.unwatchable.insert(100);
    script.vcpu(1, 100);
    let mut registry = registry(&[]);
    step(&mut registry, &mut script, &processes);
    assert_eq!(keys(&registry), ["pid:100@55"]);
    assert_eq!(script.slot(1).tenant, 1);
}

#[test]
fn a_vm_that_died_before_it_was_asked_leaves_its_slots() {
    let (mut script, processes) = (Script::default(), ScriptedProcesses::default());
    script.vcpu(1, 100);
    script.end(1);
    script.vcpu(2, 101);
    let mut registry = registry(&[]);
    assert!(!step(&mut registry, &mut script, &processes));
    assert_eq!(script.released, vec![1]);
    assert!(keys(&registry).is_empty());
}

#[test]
fn vhost_workers_belong_to_their_vm() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "kvm -name a");
    script.vcpu(1, 100);
    let mut registry = registry(&[]);
    step(&mut registry, &mut script, &processes);
    processes.workers.insert(100, vec![777]);
    script.now_ns += SECOND_WORKER_LOOK_NS;
    step(&mut registry, &mut script, &processes);
    assert!(script.watched_processes.contains(&(777, 1)));
    script.watched_processes.clear();
    script.now_ns += SECOND_WORKER_LOOK_NS;
    step(&mut registry, &mut script, &processes);
    assert!(!script.watched_processes.contains(&(777, 1)));
}

#[test]
fn a_configured_groups_name_is_mapped_to_a_droplets_id() {
    let dir = PathBuf::from("/sys/fs/cgroup/encoder");
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.cgroups.insert(dir.clone());
    let configured = config::Tenant {
        name: "encoder-17".to_owned(),
        cgroup: Some(dir),
        ..config::Tenant::default()
    };
    let pattern = Regex::new("-(?P<id>[0-9]+)$").unwrap();
    let mut registry = Registry::new(&[configured], Some(pattern));
    step(&mut registry, &mut script, &processes);
    assert_eq!(registry.tenants().next().unwrap().droplet_id, "17");
}

#[test]
fn a_configured_group_may_come_late_go_and_come_again() {
    let dir = PathBuf::from("/sys/fs/cgroup/encoder");
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    let mut registry = registry(&[config::Tenant {
        name: "encoder".to_owned(),
        cgroup: Some(dir.clone()),
        ..config::Tenant::default()
    }]);
    step(&mut registry, &mut script, &processes);
    assert!(keys(&registry).is_empty());

    processes.cgroups.insert(dir.clone());
    script.now_ns = 9_000;
    step(&mut registry, &mut script, &processes);
    let tenant = registry.tenants().next().unwrap();
    assert_eq!(
        (tenant.key.as_str(), tenant.name.as_str()),
        ("cgroup:/sys/fs/cgroup/encoder", "encoder")
    );
    // Without threads it stays: it is configured.
    step(&mut registry, &mut script, &processes);
    assert!(!registry.tenants().next().unwrap().ended);

    processes.cgroups.remove(&dir);
    script.gone_cgroups.push(dir.clone());
    step(&mut registry, &mut script, &processes);
    assert!(registry.tenants().next().unwrap().ended);
    registry.forget_ended();

    processes.cgroups.insert(dir.clone());
    step(&mut registry, &mut script, &processes);
    assert_eq!(keys(&registry), ["cgroup:/sys/fs/cgroup/encoder"]);
    assert_eq!(script.watched_cgroups[&dir], 2);
}

#[test]
fn a_configured_process_is_watched_once_and_not_taken_up_again_by_its_number() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    let mut registry = registry(&[config::Tenant {
        name: "job".to_owned(),
        pid: Some(42),
        tree: true,
        ..config::Tenant::default()
    }]);
    step(&mut registry, &mut script, &processes);
    assert!(keys(&registry).is_empty());
    processes.run(42, "make");
    script.thread(1, 42, 0);
    step(&mut registry, &mut script, &processes);
    assert_eq!(keys(&registry), ["pid:42@55"]);
    assert_eq!(script.watched_trees, vec![(42, 1)]);
    script.end(1);
    step(&mut registry, &mut script, &processes);
    registry.forget_ended();
    step(&mut registry, &mut script, &processes);
    assert!(keys(&registry).is_empty());
}

#[test]
fn threads_the_kernel_half_heard_nothing_of_join_their_droplet() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    processes.run(100, "kvm -name a");
    script.vcpu(1, 100);
    let mut registry = registry(&[]);
    step(&mut registry, &mut script, &processes);
    script.now_ns += WATCH_AGAIN_NS;
    script.later_threads.push((2, 100));
    assert!(step(&mut registry, &mut script, &processes));
    assert_eq!(script.slot(2).tenant, 1);
    // Not while a control group has taken up some of them: it is not to lose them.
    script.slot(2).tenant = 9;
    script.now_ns += WATCH_AGAIN_NS;
    step(&mut registry, &mut script, &processes);
    assert_eq!(script.slot(2).tenant, 9);
}

#[test]
fn a_process_without_free_slots_is_tried_again_and_not_ended() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    let mut registry = registry(&[config::Tenant {
        name: "job".to_owned(),
        pid: Some(42),
        tree: true,
        ..config::Tenant::default()
    }]);
    processes.run(42, "make");
    script.full_for.insert(42);
    for _ in 0..3 {
        step(&mut registry, &mut script, &processes);
        assert!(!registry.tenant(1).unwrap().ended);
        assert_eq!(registry.threads_refused(), 1);
        script.now_ns += WATCH_REFUSED_AGAIN_NS;
    }
    script.full_for.clear();
    script.thread(1, 42, 0);
    assert!(step(&mut registry, &mut script, &processes));
    assert_eq!((registry.threads_refused(), script.slot(1).tenant), (0, 1));
    // Once it is gone, it is gone, free slots or not.
    script.full_for.insert(42);
    script.slots.clear();
    processes.facts.clear();
    step(&mut registry, &mut script, &processes);
    assert!(registry.tenant(1).unwrap().ended);
}

#[test]
fn tenants_that_follow_one_another_are_known_by_their_key() {
    let (mut script, mut processes) = (Script::default(), ScriptedProcesses::default());
    let mut registry = registry(&[]);
    for (slot, tgid) in [(1, 100), (2, 200), (3, 300)] {
        processes.run(tgid, "kvm -name a");
        script.vcpu(slot, tgid);
        step(&mut registry, &mut script, &processes);
        script.end(slot);
        step(&mut registry, &mut script, &processes);
    }
    assert_eq!(registry.successions(), [(1, 2), (2, 3)]);
    registry.forget_ended();
    assert!(registry.successions().is_empty());
}

#[test]
fn proc_is_read_of_this_process() {
    let facts = ProcFs.facts(std::process::id()).unwrap();
    assert!(!facts.argv.is_empty() && !facts.exe.is_empty());
    assert!(facts.start_ticks > 0);
    assert_eq!(ProcFs.facts(u32::MAX), None);
    assert!(ProcFs.cgroup_exists(Path::new("/proc")));
    assert!(ProcFs.kernel_workers(u32::MAX).is_empty());
}

#[test]
fn stat_fields_are_found_behind_any_name() {
    let stat = "7 (a) R (b) S 1 7 7 0 -1 2129984 0 0";
    assert_eq!(stat_field(stat, 4), Some(1));
    assert_eq!(stat_field(stat, 9), Some(2_129_984));
    assert_eq!(stat_field(stat, 99), None);
    assert_eq!(stat_field("", 4), None);
}
