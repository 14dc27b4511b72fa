//! The module `tapeline_native`: the decoders as Python classes, and tables as bytes that pyarrow takes as buffers.

use std::collections::HashMap;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::alpaca::Alpaca;
use crate::binance::Binance;
use crate::columns::{Table, Values, bits};
use crate::events::Decoder;
use crate::frames;
use crate::polygon::Polygon;

/// Decodes the frames of one feed.
#[pyclass(name = "Decoder", module = "tapeline_native", frozen)]
struct PyDecoder(Box<dyn Decoder + Send + Sync>);

type Buffers<'py> = (usize, Option<Bound<'py, PyBytes>>, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

#[pymethods]
impl PyDecoder {
    #[staticmethod]
    fn binance(bars: Vec<String>) -> PyDecoder {
        PyDecoder(Box::new(Binance { bars }))
    }

    #[staticmethod]
    fn polygon(crypto: bool, exchanges: HashMap<i64, String>, facilities: HashMap<i64, String>) -> PyDecoder {
        PyDecoder(Box::new(Polygon { crypto, exchanges, facilities }))
    }

    #[staticmethod]
    fn alpaca(exchanges: Option<HashMap<String, String>>, bars_exchange: Option<String>) -> PyDecoder {
        PyDecoder(Box::new(Alpaca { exchanges, bars_exchange }))
    }

    /// Decodes the frames `rows` (int64; None: all) of the binary column with these buffers, which begins at its element `first`.
    ///
    /// Returns the tables of ticks and bars, each as the places of its rows and its columns, and the rows that were not understood.
    #[pyo3(signature = (offsets, data, first, count, rows, canonical))]
    #[allow(clippy::too_many_arguments, reason = "they are the parts of one Arrow column")]
    fn decode<'py>(
        &self,
        py: Python<'py>,
        offsets: &Bound<'py, PyAny>,
        data: &Bound<'py, PyAny>,
        first: usize,
        count: usize,
        rows: Option<&Bound<'py, PyAny>>,
        canonical: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyBytes>)> {
        let (offsets, data) = (PyUntypedBuffer::get(offsets)?, PyUntypedBuffer::get(data)?);
        let rows = rows.map(PyUntypedBuffer::get).transpose()?;
        let (offsets, data) = (bytes_of(&offsets)?, bytes_of(&data)?);
        let end = |at: usize| -> Option<usize> {
            let four = offsets.get(4 * at..4 * at + 4)?;
            usize::try_from(i32::from_le_bytes(four.try_into().ok()?)).ok()
        };
        let frame = |row: usize| -> PyResult<(usize, &[u8])> {
            let bounds = (row < count).then(|| Some(end(first + row)?..end(first + row + 1)?)).flatten();
            let frame = bounds.and_then(|bounds| data.get(bounds));
            frame.map(|frame| (row, frame)).ok_or_else(|| PyValueError::new_err(format!("row {row} lies outside its buffers")))
        };
        let chosen: Vec<usize> = match &rows {
            None => (0..count).collect(),
            Some(rows) => {
                let eights = bytes_of(rows)?.chunks_exact(8);
                eights.map(|eight| usize::from_le_bytes(eight.try_into().unwrap_or_default())).collect()
            }
        };
        let chosen: Vec<(usize, &[u8])> = chosen.into_iter().map(frame).collect::<PyResult<_>>()?;
        let mut failed: Option<PyErr> = None;
        let failure = std::cell::RefCell::new(&mut failed);
        let resolve = |name: &str| -> Option<String> {
            let answer = canonical.as_ref()?.call1((name,)).and_then(|answer| answer.extract::<Option<String>>());
            answer.unwrap_or_else(|error| {
                **failure.borrow_mut() = Some(error);
                None
            })
        };
        let names = canonical.as_ref().map(|_| &resolve as &dyn Fn(&str) -> Option<String>);
        let decoded = frames::decode(&*self.0, chosen.into_iter(), names);
        if let Some(error) = failed {
            return Err(error);
        }
        Ok((table(py, decoded.ticks)?, table(py, decoded.bars)?, PyBytes::new(py, &decoded.left)))
    }
}

fn bytes_of(buffer: &PyUntypedBuffer) -> PyResult<&[u8]> {
    if !buffer.is_c_contiguous() || buffer.buf_ptr().is_null() {
        return if buffer.len_bytes() == 0 { Ok(&[]) } else { Err(PyValueError::new_err("a buffer must be contiguous")) };
    }
    // SAFETY: PyUntypedBuffer holds a reference to its exporter, so these bytes live as long as `buffer`. Arrow's buffers are immutable: whoever
    // passes another exporter must not write to it during the call. Reading them in place saves a copy of every frame.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) })
}

/// The places of the rows, and column name to (nulls, validity bits, and the one or two buffers of values). A column of nulls is left out.
fn table<'py>(py: Python<'py>, table: Table) -> PyResult<Bound<'py, PyAny>> {
    let columns = PyDict::new(py);
    let rows = table.rows();
    for column in table.columns {
        if column.nulls == rows {
            continue;
        }
        let valid = (column.nulls > 0).then(|| PyBytes::new(py, &bits(&column.valid)));
        let buffers: Buffers = match column.values {
            Values::Numbers(values) => (column.nulls, valid, PyBytes::new(py, &values), None),
            Values::Flags(flags) => (column.nulls, valid, PyBytes::new(py, &bits(&flags)), None),
            Values::Texts(ends, texts) => (column.nulls, valid, PyBytes::new(py, &ends), Some(PyBytes::new(py, &texts))),
        };
        columns.set_item(column.name, buffers)?;
    }
    (PyBytes::new(py, &table.place), columns).into_pyobject(py).map(|table| table.into_any())
}

/// Grows with every change of what Python calls here. Tapeline uses only the one that it knows.
const INTERFACE: u32 = 1;

#[pymodule]
fn tapeline_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("INTERFACE", INTERFACE)?;
    module.add_class::<PyDecoder>()
}
