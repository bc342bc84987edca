"""What the published archives hold: counts, and content sums where they are certain.

A content sum is the SHA-256 of a file's decompressed bytes, so that packing the file
again does not matter. MNIST's four sums are on record. For CIFAR-10 the sum of the first
record of data_batch_1.bin is: it tells a lossless copy from a re-encoded one (a JPEG
copy has the same counts and labels). For Fashion-MNIST and CIFAR-100 no sum of the
decompressed bytes is on record, so there only the counts are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Official:
  """Facts about one published dataset.

  Attributes:
    counts: split -> number of examples.
    num_classes: number of classes.
    sums: what is summed -> SHA-256; a key is a file name, or 'FILE, record 0'.
  """

  counts: Mapping[str, int]
  num_classes: int
  sums: Mapping[str, str] = dataclasses.field(default_factory=dict)


OFFICIAL: Mapping[str, Official] = {
    'mnist': Official(
        counts={'train': 60_000, 'test': 10_000},
        num_classes=10,
        sums={
            'train-images-idx3-ubyte':
                'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
            'train-labels-idx1-ubyte':
                '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
            't10k-images-idx3-ubyte':
                '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
            't10k-labels-idx1-ubyte':
                'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
        },
    ),
    'fashion_mnist': Official(counts={'train': 60_000, 'test': 10_000}, num_classes=10),
    'cifar10': Official(
        counts={'train': 50_000, 'test': 10_000},
        num_classes=10,
        sums={'data_batch_1.bin, record 0': 
            '945dc5584f8efcf7dc58367c3b072c0a23dacc05ae824d7c77a33874a8ec83c7'},
    ),
    'cifar100': Official(counts={'train': 50_000, 'test': 10_000}, num_classes=100),
}


def deviations(
    name: str, counts: Mapping[str, int], sums: Mapping[str, str]) -> list[str]:
  """Sentences on every count or sum that differs from the official one, both values in each.

  Args:
    name: a key of `OFFICIAL`.
    counts: split -> number of examples found.
    sums: the sums found, by the same keys as the official ones.
  """
  official = OFFICIAL[name]
  found = [
      f'{counts.get(split, 0):,} {split} examples, the official {name} has {count:,}'
      for split, count in official.counts.items() if counts.get(split, 0) != count
  ]
  found += [
      f'{what} has the content sum {sums.get(what)}, the official one is {value}'
      for what, value in official.sums.items() if sums.get(what) != value
  ]
  return found
