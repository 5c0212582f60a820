//! Whole runs with the real binary: parts are killed and stopped in mid-stream, and every client
//! must still deliver everything, in order, once.
//!
//! As root the hosts are network namespaces joined by a bridge and the link is AF_XDP; otherwise
//! they are processes on loopback and the link is kernel UDP, which the tests say.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{LIMIT, World, engine, kill, terminate, until};
use seqcast_tools::lab::{Lab, Place, Process};
use tempfile::TempDir;

#[test]
fn killed_archive_and_server_lose_nothing() {
    let world = World::new(&["server", "archive", "client1", "client2", "client3"], 60_000);
    let mut archive = world.start("archive", true, &world.archive());
    let clients: Vec<Process> = ["client1", "client2", "client3"]
        .map(|name| world.start(name, true, &world.client(name, true)))
        .into();
    let mut server = world.start("server", false, &world.server(15_000, ""));

    world.until_delivered("client1", 15);
    kill(archive);
    // Not each of them: one that has just lost what the archive had stored waits until that is back.
    until("a client delivers 30 %", || {
        let clients = ["client1", "client2", "client3"];
        clients
            .iter()
            .any(|name| world.delivered(name) * 100 >= world.size() * 30)
    });
    archive = world.start("archive", true, &world.archive());
    world.until_delivered("client3", 45);
    kill(server);
    server = world.start("server", false, &world.server(15_000, ""));
    world.until_delivered("client1", 60);
    kill(archive);
    kill(server);
    server = world.start("server", false, &world.server(15_000, ""));
    archive = world.start("archive", true, &world.archive());

    for mut client in clients {
        client.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    terminate(archive);
    for name in ["client1", "client2", "client3"] {
        world.assert_equal(name);
        let report = &world.report(name)["subscriptions"][0];
        assert_eq!(report["lost"], 0, "{report}");
        assert!(report["gaps"].as_u64() > Some(0), "the faults were in force: {report}");
        assert_eq!(report["sessions_ended"], 3, "two restarts are seen: {report}");
    }
    world.assert_archived();
}

#[test]
fn a_stopped_server_drains_and_goes_on_where_it_stopped() {
    let world = World::new(&["server", "archive", "client1"], 30_000);
    let archive = world.start("archive", false, &world.archive());
    let client = world.start("client1", true, &world.client("client1", false));
    let server = world.start("server", false, &world.server(20_000, ""));
    world.until_delivered("client1", 30);
    terminate(server);
    let first = world.report("server");
    assert_eq!(first["publications"][0]["unacknowledged"], 0, "{first}");
    let mut server = world.start("server", false, &world.server(20_000, ""));
    server.wait(LIMIT).unwrap();
    let second = world.report("server");
    assert_eq!(
        second["publications"][0]["resumed_at"], first["publications"][0]["messages"],
        "the second run goes on where the first stopped"
    );
    world.until_delivered("client1", 100);
    terminate(client);
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
}

#[test]
fn sessions_roll_over_at_the_end_of_their_numbers() {
    let world = World::new(&["server", "archive", "client1"], 30_000);
    let archive = world.start("archive", true, &world.archive());
    let mut client = world.start("client1", true, &world.client("client1", true));
    let mut server = world.start("server", false, &world.server(30_000, "range_end = 4000"));
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    assert_eq!(world.report("client1")["subscriptions"][0]["sessions_ended"], 8);
    assert_eq!(world.report("archive")["archives"][0]["sessions"], 8);
    world.assert_archived();
    // The client has seen each change: a session ends with its last number, and the next begins.
    let log = fs::read_to_string(world.path("client1.log")).unwrap();
    let events: Vec<&str> = log.lines().filter(|l| l.contains(": session ")).collect();
    assert_eq!(events.len(), 15, "{log}");
    for (n, event) in events.iter().enumerate() {
        let what = match n {
            14 => "ended with message 2000",
            n if n % 2 == 0 => "ended with message 4000",
            _ => "began",
        };
        assert!(event.contains(what), "{n}: {log}");
    }
}

#[test]
fn server_archive_and_client_live_in_one_process() {
    let world = World::new(&["whole", "client1"], 20_000);
    let mut remote = world.start("client1", true, &world.client("client1", true));
    let roles = [
        world.server(20_000, ""),
        world.archive() + "exit_at_end = true\n",
        world.client("whole", true),
    ]
    .concat();
    let mut all = world.start("whole", false, &roles);
    remote.wait(LIMIT).unwrap();
    all.wait(LIMIT).unwrap();
    world.assert_equal("client1");
    world.assert_equal("whole");
    world.assert_archived();
}

#[test]
fn without_an_archive_the_server_repairs() {
    let world = World::new(&["server", "client1"], 20_000);
    let mut client = world.start("client1", true, &world.client("client1", true));
    let roles = world
        .server(20_000, "linger_ms = 2000")
        .replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    world.assert_equal("client1");
    let report = &world.report("client1")["subscriptions"][0];
    assert!(report["repaired_server"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_new_client_starts_at_now() {
    let world = World::new(&["server", "archive", "client1", "late"], 30_000);
    let archive = world.start("archive", false, &world.archive());
    let mut client = world.start("client1", false, &world.client("client1", true));
    let mut server = world.start("server", false, &world.server(15_000, ""));
    world.until_delivered("client1", 30);
    let roles = world
        .client("late", true)
        .replace("from = \"session\"", "from = \"now\"");
    let mut late = world.start("late", false, &roles);
    for process in [&mut client, &mut late, &mut server] {
        process.wait(LIMIT).unwrap();
    }
    terminate(archive);
    let got = fs::read(world.path("late.out")).unwrap();
    let want = fs::read(&world.input).unwrap();
    assert!(
        !got.is_empty() && got.len() < want.len() * 9 / 10,
        "{} bytes",
        got.len()
    );
    assert!(want.ends_with(&got), "an unbroken tail of the stream");
}

#[test]
fn a_server_that_is_full_can_be_stopped_and_goes_on_later() {
    let world = World::new(&["server", "archive", "client1"], 400_000);
    let client = world.start("client1", false, &world.client("client1", false));
    let roles = world.server(1_000_000, "retain = \"8 MiB\"\nlinger_max_ms = 300");
    let server = world.start("server", false, &roles);
    // Without an archive the server fills its log and takes no more.
    world.until_delivered("client1", 20);
    world.until_said("server", "no room for new messages");
    terminate(server);
    assert!(world.delivered("client1") < world.size(), "it was held back");
    let archive = world.start("archive", false, &world.archive());
    let mut server = world.start("server", false, &roles);
    server.wait(LIMIT).unwrap();
    world.until_delivered("client1", 100);
    terminate(client);
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
}

#[test]
fn a_full_server_gives_up_the_oldest_if_told_to_and_everybody_counts_them() {
    let world = World::new(&["server", "archive", "client1"], 400_000);
    let client = world.start("client1", false, &world.client("client1", false));
    let archive = world.start("archive", false, &world.archive());
    let roles = world.server(200_000, "retain = \"8 MiB\"\nwhen_full = \"drop-oldest\"");
    let mut server = world.start("server", false, &roles);
    world.until_delivered("client1", 10);
    terminate(archive);
    let recorded = world.report("archive")["archives"][0]["stored"].as_u64().unwrap();
    world.until_delivered("client1", 100);
    world.until_said("server", "GIVING UP the oldest messages");
    let archive = world.start("archive", false, &world.archive());
    server.wait(LIMIT).unwrap();
    terminate(archive);
    terminate(client);
    world.assert_equal("client1");
    let server = &world.report("server")["publications"][0];
    let archive = &world.report("archive")["archives"][0];
    let dropped = server["dropped_unacknowledged"].as_u64().unwrap();
    assert!(0 < dropped && dropped < 400_000, "{server}");
    assert_eq!(archive["lost"], dropped, "{archive}");
    assert_eq!(archive["stored"], 400_000 - dropped - recorded, "{archive}");
    assert_eq!(archive["missing"], 0, "{archive}");
    for mark in ["stored_up_to", "synced_up_to"] {
        assert_eq!(archive[mark], 400_000, "{archive}");
    }
}

#[test]
fn a_bounded_archive_gives_up_the_oldest_and_serves_the_rest() {
    let world = World::new(&["server", "archive", "late"], 400_000);
    let keep = "segment = \"1 MiB\"\nkeep_bytes = \"8 MiB\"\n";
    let archive = world.start("archive", false, &(world.archive() + keep));
    let mut server = world.start("server", false, &world.server(1_000_000, ""));
    server.wait(LIMIT).unwrap();
    let oldest = || {
        let archive = seqcast_archive::Reader::open(&world.path("archive.d")).unwrap();
        let session = archive.sessions().unwrap()[0];
        let session = archive.session(session).unwrap();
        assert_eq!(session.stored().as_slice().last().unwrap().last.0, 400_000);
        session.stored().as_slice()[0].first.0
    };
    until("the oldest go", || oldest() > 200_000);
    let before = oldest();
    terminate(archive);
    // It goes on where it was, and holds as much as before.
    let archive = world.start("archive", false, &(world.archive() + keep));
    terminate(archive);
    assert_eq!(oldest(), before);
    let report = &world.report("archive")["archives"][0];
    assert_eq!(report["missing"], 0, "{report}");
}

#[test]
fn many_short_runs_need_no_more_room_than_one() {
    let world = World::new(&["server", "archive"], 2_000);
    let archive = world.start("archive", false, &world.archive());
    let whole = fs::read(&world.input).unwrap();
    // Each run finds some more messages in its file.
    let mut end = 0;
    for _ in 0..8 {
        for _ in 0..250 {
            end += 2 + usize::from(u16::from_be_bytes([whole[end], whole[end + 1]]));
        }
        fs::write(&world.input, &whole[..end]).unwrap();
        let mut server = world.start(
            "server",
            false,
            &world.server(100_000, "retain = \"8 MiB\"\nlinger_ms = 1"),
        );
        server.wait(LIMIT).unwrap();
    }
    terminate(archive);
    world.assert_archived();
}

#[test]
fn a_source_that_breaks_off_still_ends_its_stream() {
    let world = World::new(&["server", "archive", "client1"], 2_000);
    let archive = world.start("archive", false, &world.archive());
    let mut client = world.start("client1", false, &world.client("client1", true));
    let whole = fs::read(&world.input).unwrap();
    fs::write(&world.input, &whole[..whole.len() - 1]).unwrap();
    let mut server = world.start("server", false, &world.server(100_000, ""));
    client.wait(LIMIT).unwrap();
    let error = server.wait(LIMIT).unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
    terminate(archive);
    let got = fs::read(world.path("client1.out")).unwrap();
    assert!(
        whole.starts_with(&got) && whole.len() - got.len() < 60,
        "all whole messages arrived"
    );
    assert_eq!(world.report("server")["publications"][0]["messages"], 1_999);
}

#[test]
fn lines_go_from_standard_input_to_standard_output_and_through_a_fifo() {
    let world = World::at(Place::Loopback, &["host"], 1_000);
    let fifo = world.path("pipe");
    let config = |name: &str, roles: String| {
        let path = world.path(&format!("{name}.toml"));
        let text = format!("[engine]\nname = \"{name}\"\ninterface = \"lo\"\nlink = \"udp\"\n{roles}");
        fs::write(&path, text).unwrap();
        path
    };
    let stream = &world.stream;
    let spawn = |path: PathBuf, stdin: Stdio, stdout: Stdio, log: &str| {
        Command::new(engine())
            .args(["run", "--config"])
            .arg(path)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(fs::File::create(world.path(log)).unwrap())
            .spawn()
            .unwrap()
    };
    let ready = |log: &str| {
        until(log, || {
            fs::read_to_string(world.path(log))
                .unwrap_or_default()
                .contains("ready ")
        });
    };
    let to_stdout = config(
        "stdout",
        format!(
            "[[subscribe]]\nstream = \"{stream}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ stdout = true, format = \"lines\" }}\n"
        ),
    );
    let to_fifo = config(
        "fifo",
        format!(
            "[[subscribe]]\nstream = \"{stream}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ fifo = \"{}\", format = \"lines\" }}\n",
            fifo.display()
        ),
    );
    let from_stdin = config(
        "stdin",
        format!(
            "[[publish]]\nstream = \"{stream}\"\nlinger_ms = 1000\nsource = {{ stdin = true, format = \"lines\" }}\n"
        ),
    );
    let text: String = (0..5000).map(|i| format!("line {i}\n")).collect();
    let printer = spawn(to_stdout, Stdio::null(), Stdio::piped(), "stdout.log");
    let mut piper = spawn(to_fifo, Stdio::null(), Stdio::null(), "fifo.log");
    ready("stdout.log");
    ready("fifo.log");
    until("the FIFO", || fifo.exists());
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read_to_string(fifo).unwrap()
    });
    let mut server = spawn(from_stdin, Stdio::piped(), Stdio::null(), "stdin.log");
    let mut stdin = server.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
    drop(stdin);
    let printed = printer.wait_with_output().unwrap();
    assert!(printed.status.success());
    assert!(printed.stdout == text.as_bytes());
    assert!(server.wait().unwrap().success());
    assert!(piper.wait().unwrap().success());
    assert_eq!(reader.join().unwrap(), text);
}

#[test]
fn a_standard_output_that_nobody_reads_does_not_block_the_end() {
    let world = World::at(Place::Loopback, &["host"], 20_000);
    let roles = world.server(1_000_000, "").replace("archives = 1", "archives = 0");
    let sink = format!(
        "[[subscribe]]\nstream = \"{}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ stdout = true, format = \"hex\" }}\n",
        world.stream
    );
    let path = world.path("both.toml");
    fs::write(
        &path,
        format!("[engine]\ninterface = \"lo\"\nlink = \"udp\"\n{roles}{sink}"),
    )
    .unwrap();
    let mut child = Command::new(engine())
        .args(["run", "--config"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Held open, and never read.
    let pipe = child.stdout.take();
    let ended = child.wait_with_output().unwrap();
    drop(pipe);
    let error = String::from_utf8(ended.stderr).unwrap();
    assert!(
        !ended.status.success() && error.contains("stdout: its reader took nothing"),
        "{error}"
    );
}

#[test]
fn bad_input_is_refused_with_a_remedy() {
    let dir = TempDir::new().unwrap();
    let run = |text: &str| {
        let path = dir.path().join("c.toml");
        fs::write(&path, text).unwrap();
        let out = Command::new(engine())
            .args(["run", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    let good = "[engine]\ninterface = \"lo\"\nlink = \"udp\"\n[[publish]]\nstream = \"239.82.0.1:4999\"\nsource = { file = \"/nonexistent\" }\n";
    for (text, words) in [
        (good.replace("link", "lnik"), "unknown field `lnik`"),
        (good.replace("\"lo\"", "\"nosuch0\""), "nosuch0"),
        (good.to_owned(), "/nonexistent"),
        (good.replace("239.82.0.1", "224.0.0.5"), "239.0.0.0/8"),
        (
            good.replace("file = \"/nonexistent\"", "program = true"),
            "no program feeds",
        ),
    ] {
        let error = run(&text);
        assert!(error.contains(words), "{error}");
    }
}

/// Needs root: looks at the interface's XDP program from outside.
#[test]
fn root_a_killed_engine_leaves_no_xdp_program() {
    if let Err(why) = Lab::xdp_available() {
        eprintln!("passed over: {why}");
        return;
    }
    let world = World::new(&["client1"], 1_000);
    let client = world.start("client1", false, &world.client("client1", true));
    let host = world.lab.host("client1").unwrap();
    let has_program = || {
        let out = host
            .command("ip")
            .args(["-d", "link", "show", "dev", host.interface()])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).contains("prog/xdp")
    };
    assert!(has_program());
    kill(client);
    until("the program goes with its process", || !has_program());
    // And the next one starts at once.
    kill(world.start("client1", false, &world.client("client1", true)));
}
