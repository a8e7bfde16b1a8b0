//! `interlock devices` and `interlock config`.

use interlock_backends::Backends;

use crate::{
    arguments::Config,
    config,
    exit::Exit,
    program::Program,
    schema,
    table::table,
    terminal::{print_data, say},
};

pub(crate) fn devices() -> Result<(), Exit> {
    let backends = Backends::default();
    let mut rows = table(&["device", "what it is"]);
    for (name, what) in backends.list() {
        rows.add_row([name, what]);
    }
    say(&rows.to_string());
    for why in backends.absences() {
        say(&why);
    }
    Ok(())
}

pub(crate) fn config<P: Program>(arguments: &Config) -> Result<(), Exit> {
    if let Some(key) = &arguments.key {
        say(&schema::explain::<P>(key)?);
        return Ok(());
    }
    if arguments.schema {
        let schema = serde_json::to_string_pretty(&schema::schema::<P>()).map_err(Exit::failed)?;
        return print_data(&(schema + "\n")).map(drop);
    }
    let config = config::load::<P>(arguments.source.config.as_deref(), &arguments.source.sets)?;
    print_data(&format!("{}\n", config.to_toml()?.trim_end())).map(drop)
}
