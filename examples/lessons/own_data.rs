//! The whole command for your own data: vectors of numbers, with your own `[data]` section, and files of them for `predict` and `eval`.
//!
//! ```sh
//! cargo run --release --example own_data -- train --out run
//! echo 0,.4,.7,.9,1,.9,.7,.3,-.1,-.4,-.8,-1,-1,-.9,-.6,-.3 > new.csv # one vector a line
//! cargo run --release --example own_data -- predict run new.csv
//! sed 's/$/,low/' new.csv > labelled.csv # and its class, to score
//! cargo run --release --example own_data -- eval run --data labelled.csv
//! ```

use std::{fs, path::Path, path::PathBuf, process::ExitCode, sync::Arc};

use candle_core::{Device, Tensor};
use interlock::{Dataset, Error, InMemory, Result};
use interlock_cli::{DataSection, Program};
use interlock_models::{ModelConfig, data};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const CLASSES: [&str; 3] = ["low", "middle", "high"];
const WIDTH: usize = 16;

/// The section `[data]`: 16 samples of a tone, whose class is its pitch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tones {
    /// The number of tones, of which a fifth is for validation.
    count: usize,
}

/// Reads lines of numbers, with a class at the end if they are `labelled`. Returns their names, the vectors and their classes.
fn read(file: &Path, labelled: bool) -> Result<(Vec<String>, Tensor, Vec<u32>)> {
    let (mut names, mut values, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for (line, text) in (1..).zip(fs::read_to_string(file).map_err(|e| Error::file(file, e))?.lines()) {
        let (numbers, class) = if labelled { text.rsplit_once(',').unwrap_or_default() } else { (text, CLASSES[0]) };
        let row: Option<Vec<f32>> = numbers.split(',').map(|number| number.parse().ok()).collect();
        let class = CLASSES.iter().position(|&name| name == class);
        let (Some(row), Some(class)) = (row.filter(|row| row.len() == WIDTH), class) else {
            let right = format!("{WIDTH} numbers, for `eval` also a class ({})", CLASSES.join(", "));
            return Err(Error::file(file, format!("line {line} is wrong; give {right}, separated by commas")));
        };
        names.push(format!("{}:{line}", file.display()));
        values.extend(row);
        classes.push(class as u32);
    }
    Ok((names, Tensor::from_vec(values, ((), WIDTH), &Device::Cpu)?, classes))
}

impl DataSection for Tones {
    fn open(&self) -> Result<data::Data> {
        let tone = |n: usize| (0..WIDTH).map(move |at| ((n % 3 + 1) as f32 * 0.4 * at as f32 + n as f32).sin());
        let vectors = Tensor::from_iter((0..self.count).flat_map(tone), &Device::Cpu)?.reshape(((), WIDTH))?;
        let classes = Tensor::from_iter((0..self.count).map(|n| (n % 3) as u32), &Device::Cpu)?;
        let (train, validation) = InMemory::new(vectors, classes)?.split(0.2, 0)?;
        let class_names = CLASSES.map(String::from).to_vec();
        let kind = data::DataKind::Vectors { width: WIDTH, classes: class_names.len(), class_names };
        let description = data::Description::new(kind, None);
        Ok(data::Data { train: Arc::new(train), validation: Arc::new(validation), description, notes: Vec::new() })
    }

    fn open_validation(&self, _: &data::Description) -> Result<Arc<dyn Dataset>> {
        Ok(self.open()?.validation)
    }

    fn open_labelled(&self, _: &data::Description, file: &Path) -> Result<Arc<dyn Dataset>> {
        let (_, vectors, classes) = read(file, true)?;
        Ok(Arc::new(InMemory::new(vectors, Tensor::new(classes, &Device::Cpu)?)?))
    }

    fn read_inputs(&self, _: &data::Description, files: &[PathBuf]) -> Result<data::Inputs> {
        let inputs = |file: &PathBuf| read(file, false).and_then(|(names, rows, _)| data::Inputs::new(names, rows));
        files.iter().map(inputs).collect()
    }
}

enum Own {}
impl Program for Own {
    type Model = ModelConfig;
    type Data = Tones;
    const CONFIG: &'static str = "name = 'tones'
        epochs = 20
        data = { count = 600 }
        model = { kind = 'mlp', hidden = [32, 32] }
        partition = { stages = 3 }
        optimizer = { lr = 0.1, momentum = 0.9 }";
}

fn main() -> ExitCode {
    interlock_cli::run::<Own>()
}
