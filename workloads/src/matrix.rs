//! Products of f64 and f32 matrices, blocked, in the widest vectors the compiler and the CPU agree on: what numeric code leaves in the registers.

use std::ops::{Add, Mul};

/// Rows and columns.
pub const SIZE: usize = 128;
/// Rows of the right factor that are used while they are in the cache.
const BLOCK: usize = 32;

/// A square matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix<T>(Vec<T>);

/// A number that matrices are made of.
pub trait Element: Copy + Add<Output = Self> + Mul<Output = Self> {
    /// Zero.
    const ZERO: Self;
    /// As close as the type comes.
    fn from_f64(value: f64) -> Self;
    /// The value.
    fn to_f64(self) -> f64;
}

impl Element for f64 {
    const ZERO: Self = 0.0;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn from_f64(value: f64) -> Self {
        value as Self
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl<T: Element> Matrix<T> {
    /// A matrix with the elements `value(row, column)`.
    pub fn from_fn(value: impl Fn(usize, usize) -> f64) -> Self {
        Self(
            (0..SIZE * SIZE)
                .map(|at| T::from_f64(value(at / SIZE, at % SIZE)))
                .collect(),
        )
    }

    /// Sum of all elements.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|&element| element.to_f64()).sum()
    }
}

/// A discrete cosine transform: orthogonal, so that products of it with anything neither grow nor vanish.
#[must_use]
pub fn rotation<T: Element>() -> Matrix<T> {
    let size = SIZE as f64;
    Matrix::from_fn(|row, column| {
        let scale = if row == 0 { 1.0 } else { 2.0 } / size;
        let angle = std::f64::consts::PI * (column as f64 + 0.5) * row as f64 / size;
        scale.sqrt() * angle.cos()
    })
}

/// A smooth field, as a simulation or an image has.
#[must_use]
pub fn field<T: Element>(thread: u16) -> Matrix<T> {
    Matrix::from_fn(|row, column| {
        (row as f64 * 0.1 + f64::from(thread)).sin() + (column as f64 * 0.07).cos()
    })
}

#[inline(always)]
fn multiply_generic<T: Element>(a: &Matrix<T>, b: &Matrix<T>, product: &mut Matrix<T>) {
    product.0.fill(T::ZERO);
    for block in (0..SIZE).step_by(BLOCK) {
        for (row, sums) in a.0.chunks_exact(SIZE).zip(product.0.chunks_exact_mut(SIZE)) {
            let rows = b.0[block * SIZE..].chunks_exact(SIZE);
            for (&factor, elements) in row[block..block + BLOCK].iter().zip(rows) {
                for (sum, &element) in sums.iter_mut().zip(elements) {
                    *sum = *sum + factor * element;
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn multiply_avx2<T: Element>(a: &Matrix<T>, b: &Matrix<T>, product: &mut Matrix<T>) {
    multiply_generic(a, b, product);
}

/// `product` = `a` × `b`.
pub fn multiply<T: Element>(a: &Matrix<T>, b: &Matrix<T>, product: &mut Matrix<T>) {
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2, as was just asked; the function is the same code compiled for it.
        unsafe { multiply_avx2(a, b, product) };
    } else {
        multiply_generic(a, b, product);
    }
}

/// One thread's work: its field, rotated for ever, in both precisions.
#[derive(Debug, Clone)]
pub struct Work {
    double: [Matrix<f64>; 3],
    single: [Matrix<f32>; 3],
}

impl Work {
    /// The field of `thread`.
    #[must_use]
    pub fn new(thread: u16) -> Self {
        let (double, single) = (field(thread), field(thread));
        Self {
            double: [rotation(), double.clone(), double],
            single: [rotation(), single.clone(), single],
        }
    }

    /// One product in each precision. Returns the sum of all elements of both.
    pub fn step(&mut self) -> f64 {
        fn rotate<T: Element>([rotation, field, scratch]: &mut [Matrix<T>; 3]) -> f64 {
            multiply(rotation, field, scratch);
            std::mem::swap(field, scratch);
            field.sum()
        }
        rotate(&mut self.double) + rotate(&mut self.single)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive<T: Element>(a: &Matrix<T>, b: &Matrix<T>) -> Matrix<T> {
        let mut product = Vec::new();
        for row in 0..SIZE {
            for column in 0..SIZE {
                product.push((0..SIZE).fold(T::ZERO, |sum, k| {
                    sum + a.0[row * SIZE + k] * b.0[k * SIZE + column]
                }));
            }
        }
        Matrix(product)
    }

    #[test]
    fn blocked_products_are_those_of_the_definition() {
        let mut product = field::<f64>(9);
        multiply(&rotation(), &field(1), &mut product);
        assert_eq!(product, naive(&rotation(), &field(1)));
        let mut generic = field::<f64>(9);
        multiply_generic(&rotation(), &field(1), &mut generic);
        assert_eq!(product, generic);
        let mut product = field::<f32>(9);
        multiply(&rotation(), &field(1), &mut product);
        assert_eq!(product, naive(&rotation(), &field(1)));
    }

    #[test]
    fn a_long_run_neither_grows_nor_vanishes() {
        let squares = |work: &Work| work.double[1].0.iter().map(|x| x * x).sum::<f64>();
        let mut work = Work::new(0);
        let before = squares(&work);
        for _ in 0..50 {
            assert!(work.step().is_finite());
        }
        assert!((squares(&work) / before - 1.0).abs() < 1e-9);
    }
}
