//! `tfo run`.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tracing::{info, warn};

use crate::{
    cli::args::Run,
    config::{Config, Keys},
    control::{self, Request, Server},
    daemon::{
        controller::{Controller, FOLLOW_EVERY, FromFile, Options, Retire},
        health::health,
        http,
    },
    dataplane::{Datapath, pins::Bpffs},
    fleet::{
        access::Access,
        document::Document,
        feed::{self, Reporter},
        kept::Kept,
    },
    keys::{
        feed::{Memory, Watch},
        keeper::{Keeper, Source},
        schedule::Schedule,
        secret::Secret,
        state::State,
        succession::Succession,
    },
    model::{
        services::{Named, Services},
        settings::{KeysFrom, Sizes},
    },
    util::{
        descriptors::raise_limit,
        privileges,
        screen::Screen,
        secrecy::leaving_no_trace,
        service::Service,
        signals::{Caught, Signals},
        time::{every, unix_seconds},
    },
    view::{counters::Report, history},
};

/// Time for which a start waits for etcd.
const FIRST_READ: Duration = Duration::from_secs(2);
/// Time between drawings of the live counters on a terminal.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// Time between log lines with totals, without a terminal.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Runs the controller until SIGINT, SIGTERM, `tfo unload`, or SIGHUP without a configuration file. After SIGTERM the
/// program stays attached; otherwise nothing is left behind.
pub(super) async fn run(args: &Run, bpffs: &Bpffs, state: &Path) -> Result<()> {
    // Signals are caught before the first attachment, so that each leads to a cleanup.
    let mut signals = Signals::new()?;
    let config = config(args)?;
    let interfaces = config.interfaces.clone();
    // A file may be for many hosts, and this address is one of this host.
    let metrics = args.metrics.or(config.metrics);
    raise_limit(&interfaces, metrics.is_some())?;
    let options = options(config, args, state)?;
    // Before anything is attached: if it fails, a service manager that restarts us does not attach and detach all the
    // time.
    let listener = match metrics {
        Some(address) => Some(http::bind(address)?),
        None => None,
    };
    let mut controller = Controller::new(&interfaces, bpffs, options).await?;
    // Before anything is attached: clients that see an attached program can send requests.
    let (mut server, mut requests) = Server::listen(controller.sites().iter().map(|site| &**site.pins()));
    controller.start().await?;
    // Only a file can have `fast_open`, and a later reload may bring it.
    if let Err(error) = privileges::drop_unneeded(controller.will_unmount(), args.config.is_some()) {
        warn!("{error:#}");
    }
    let mut service = Service::default();
    let wake = controller.wake();
    let mut questions = http::serve(listener);
    let mut screen = Screen::open();
    let mut unread = BTreeMap::new();
    let mut follow = every(FOLLOW_EVERY);
    let mut sample = every(history::SAMPLE_INTERVAL);
    let mut show = every(if screen.is_some() { DRAW_EVERY } else { LOG_EVERY });
    while !controller.is_idle() {
        tokio::select! {
            caught = signals.next() => match caught {
                Caught::HangUp if args.config.is_some() => {
                    service.reload_begins();
                    controller.reload(Vec::new());
                }
                Caught::HangUp | Caught::Interrupt => break,
                Caught::Terminate => {
                    service.stops();
                    controller.leave();
                    return Ok(());
                }
            },
            _ = follow.tick() => controller.step().await,
            () = wake.wait() => controller.step().await,
            _ = sample.tick() => controller.sample(),
            Some(waiting) = requests.recv() => if let Some((request, reply)) = waiting.take() {
                if matches!(request, Request::Reload) {
                    service.reload_begins();
                }
                controller.handle(request, reply);
            },
            Some(question) = questions.recv() => question.answer(&controller, &interfaces),
            _ = show.tick() => display(&reports(&controller, &mut unread), screen.as_mut()),
        }
        server.retain(|interface| controller.sites().iter().any(|site| site.name() == interface));
        attend(&mut service, &controller, &interfaces);
    }
    service.stops();
    controller.stop().await
}

/// Returns the options of a controller with `config`, whose orders are kept in the folder `state`.
fn options(config: Config, args: &Run, state: &Path) -> Result<Options> {
    let Config { attach, keys, services, .. } = config.clone();
    let (source, fleet) = leaving_no_trace(|| source(&keys, state))?;
    Ok(Options {
        attach,
        source,
        retire: Retire { below: keys.retire_below, max_age: keys.max_age },
        services,
        file: args.config.clone().map(|path| FromFile { path, config }),
        state: state.to_owned(),
        fleet,
    })
}

/// Tells the service manager how `controller` fares, which should be attached to `interfaces`.
fn attend(service: &mut Service, controller: &Controller, interfaces: &[String]) {
    service.is_alive();
    if !controller.is_changing() {
        service.reload_ended();
    }
    if !service.is_report_due() {
        return;
    }
    match health(controller, interfaces) {
        Ok(()) => {
            let attached =
                controller.datapaths().map(|one| format!("{} ({})", one.interface.name, one.attach()));
            let attached = attached.collect::<Vec<_>>().join(", ");
            service.report(Ok(&format!("attached to {attached}, keys in step")));
        }
        Err(why) => service.report(Err(&why)),
    }
}

/// Reads the configuration file, or makes a configuration of the command line.
fn config(args: &Run) -> Result<Config> {
    if let Some(file) = &args.config {
        return Config::read(file);
    }
    // `--mode` holds for all services.
    let mode = args.mode.into();
    let named = args.services.iter().map(|named| Named { mode, ..named.clone() }).collect();
    Ok(Config {
        interfaces: args.interfaces.clone(),
        attach: args.attach,
        metrics: args.metrics,
        keys: Keys {
            source: args.keys.clone(),
            rotate: args.rotate,
            overlap: args.overlap,
            state: args.key_state.clone(),
            retire_below: args.retire_below,
            max_age: args.max_age,
            etcd: None,
        },
        maps: Sizes::default(),
        services: Services::new(named, mode).context("--service")?,
    })
}

/// Opens the source of keys that `keys` names. A host of a fleet keeps what it knows of it in the folder `state`, and has a
/// reporter.
fn source(keys: &Keys, state: &Path) -> Result<(Source, Option<Reporter>)> {
    if keys.source == KeysFrom::Etcd {
        let (source, reporter) = etcd(keys, state)?;
        return Ok((source, Some(reporter)));
    }
    Ok((local_source(keys)?, None))
}

/// Opens a source of keys that is not etcd.
fn local_source(keys: &Keys) -> Result<Source> {
    if keys.source != KeysFrom::Kernel {
        // The limits for the keys of a fleet hold for random keys, too.
        Schedule::new(keys.interval())?;
    }
    if keys.max_age.is_some_and(|age| age.is_zero()) {
        bail!("--max-age takes at least 1s");
    }
    match &keys.source {
        KeysFrom::Kernel => Ok(Source::Kernel),
        KeysFrom::Secret(file) => {
            // Before the secret is read, so that no change is missed.
            let feed = Watch::start(file);
            let (secret, schedule) = (Secret::read(file)?, Schedule::new(keys.interval())?);
            let memory = Memory::new(control::FOLDER.as_ref())?;
            let succession = succession(secret, schedule, keys.overlap, &memory);
            Ok(Source::Secret { succession, feed, memory: Some(memory) })
        }
        KeysFrom::Etcd => bail!("keys of etcd need [keys.etcd]"),
        KeysFrom::Random => {
            let path = keys.state.clone();
            if let Some(dir) = path.parent() {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.with_context(|| format!("cannot make {}, where keys are to be kept", dir.display()))?;
            }
            let lock = lock(&path)?;
            State::tidy(&path)?;
            let state = match State::load(&path)? {
                Some(state) => state,
                None => {
                    let state = State::new(unix_seconds())?;
                    state.store(&path)?;
                    state
                }
            };
            Ok(Source::Random { state, path, lock, rotate: keys.interval() })
        }
    }
}

/// Goes on with the secrets of the controller before, if there was one since the host started, and begins with `secret`
/// otherwise.
fn succession(secret: Secret, schedule: Schedule, overlap: Duration, memory: &Memory) -> Succession {
    let known = memory.load(schedule, overlap).unwrap_or_else(|error| {
        warn!("keys: {error:#}: the secret is in force at once");
        None
    });
    let succession = match known {
        Some(mut known) => {
            known.tidy(unix_seconds());
            Keeper::learn(&mut known, secret, unix_seconds());
            known
        }
        None => Succession::new(secret, schedule, overlap),
    };
    if let Err(error) = memory.store(&succession) {
        warn!("keys: a restart will not know the secrets before: {error:#}");
    }
    succession
}

/// Joins the fleet: reads its document, from etcd or else from what this host has kept, and follows it.
fn etcd(keys: &Keys, state: &Path) -> Result<(Source, Reporter)> {
    let settings = keys.etcd.as_ref();
    let settings =
        settings.context("keys of etcd need a configuration file with [keys.etcd]: give --config")?;
    let schedule = Schedule::new(keys.interval())?;
    let access = Access::read(settings)?;
    let (mut kept, document) = Kept::open(state, &access.key)?;
    kept.lock()?;
    let forgotten = kept.forgotten;
    let (mut incoming, reporter) =
        feed::start(access, kept, document.as_ref().map(Document::outline), schedule.interval())?;
    // What is in etcd comes before what was kept, since that may have leaked meanwhile.
    let fresh = incoming.wait(if document.is_some() { FIRST_READ } else { FIRST_READ * 5 })?;
    let link = reporter.state().link;
    let document = fresh.or(document).with_context(|| {
        let why = link
            .failure
            .clone()
            .or(link.refusal)
            .unwrap_or_else(|| "etcd has none (`tfo fleet init` makes it)".to_owned());
        format!("there is no secret: this host has kept none, and {why}")
    })?;
    if let Some(why) = link.failure {
        warn!("fleet: starting with generation {}, which this host has kept: {why}", document.generation);
    }
    let succession = incoming.begin(&document, forgotten, schedule, keys.overlap);
    Ok((Source::Secret { succession, feed: Box::new(incoming), memory: None }, reporter))
}

/// Makes sure that no other process keeps keys in the file at `path`. Each change replaces that file, so the lock is on
/// another file beside it.
fn lock(path: &Path) -> Result<Flock<File>> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let file = file.with_context(|| format!("cannot open {}", beside.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            bail!(
                "another tfo keeps its keys in {}: give this one its own (--key-state; state of [keys] in a configuration)",
                path.display()
            )
        }
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", beside.display())),
    }
}

/// Reads the counters of each interface, and leaves out unreadable ones. `unread` keeps their reasons, so that each is
/// logged once.
fn reports(controller: &Controller, unread: &mut BTreeMap<String, String>) -> Vec<Report> {
    let read = |datapath: &Datapath| {
        let name = &datapath.interface.name;
        match Report::of(datapath) {
            Ok(report) => {
                unread.remove(name);
                Some(report)
            }
            Err(error) => {
                let why = format!("{error:#}");
                if unread.insert(name.clone(), why.clone()).as_ref() != Some(&why) {
                    warn!("{name}: cannot read the counters: {why}");
                }
                None
            }
        }
    };
    controller.datapaths().filter_map(read).collect()
}

/// Shows the counters, live on a terminal, else in the log.
fn display(reports: &[Report], screen: Option<&mut Screen>) {
    match screen {
        Some(screen) => {
            let text: Vec<_> = reports.iter().map(Report::text).collect();
            screen.draw(&text.join("\n"));
        }
        None => reports.iter().for_each(|report| info!("{}: {}", report.interface, report.summary())),
    }
}
