//! `interlock completions` and `interlock man`: the command line for shells and for the manual.

use clap::Command;
use interlock::tools::files;

use crate::{
    arguments::{Completions, Man},
    exit::Exit,
    program::program,
    terminal::{print_data, say},
};

pub(crate) fn completions(arguments: &Completions, mut command: Command) -> Result<(), Exit> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, program(), &mut text);
    print_data(&String::from_utf8_lossy(&text)).map(drop)
}

pub(crate) fn man(arguments: &Man, command: Command) -> Result<(), Exit> {
    let Some(folder) = &arguments.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).map_err(Exit::failed)?;
        return print_data(&String::from_utf8_lossy(&page)).map(drop);
    };
    files::create_folder(folder).map_err(Exit::failed)?;
    clap_mangen::generate_to(command, folder).map_err(Exit::failed)?;
    say(&format!(
        "the pages are in {}; read the first with: man {}",
        folder.display(),
        folder.join(format!("{}.1", program())).display()
    ));
    Ok(())
}
