"""Movie-review sentences with human ratings, from the source distribution of vaderSentiment (MIT).

Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014:
10,605 sentences, each with the mean of 20 ratings from -4 (most negative) to 4.
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from defensekit.api import Dataset, DatasetSource, DefenseKitError, Field, Row
from defensekit_demo.caching import fetched

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class MovieReviews(DatasetSource):
    """Movie-review sentences, labelled by the sign of their mean rating."""

    bound: float = Field(0.8, ge=0, lt=4, description="rows whose mean rating is closer to 0 than this are left out")

    def contents(self, say: Callable[[str], None]) -> str:
        archive(say)
        return SHA256

    def load(self) -> Dataset:
        rows, near = [], 0
        for number, line in enumerate(member(archive(lambda text: None)).split("\n")):
            if not line.strip():
                continue
            _, rating, text = (part.strip() for part in line.split("\t", 2))
            if abs(float(rating)) < self.bound or float(rating) == 0:
                near += 1
            else:
                rows.append(Row(number, text, int(float(rating) > 0)))
        note = (
            f"{near:,} of {near + len(rows):,} sentences have a mean rating within {self.bound} of 0 and are left out"
        )
        return Dataset(("negative", "positive"), rows, notes=[note])


def archive(say: Callable[[str], None]) -> Path:
    """The source distribution in the cache folder, downloaded once; its digest is checked each time.

    Raises:
        DefenseKitError: it could not be downloaded.
    """
    # The build requirements for its metadata are installed.
    options = ["--no-binary", ":all:", "--no-build-isolation"]
    return fetched("the movie-review sentences", "vaderSentiment==3.3.2", ARCHIVE, SHA256, "2.4 MB", say, options)


def member(path: Path) -> str:
    """The text of the file of ratings, read through both archives without writing to disk."""
    with tarfile.open(path) as outer:
        inner = outer.extractfile(INNER)
        if inner is None:
            raise DefenseKitError(f"{path} has no {INNER}")
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            ratings = archive.extractfile(MEMBER)
            if ratings is None:
                raise DefenseKitError(f"{path} has no {MEMBER}")
            return ratings.read().decode("utf-8")
