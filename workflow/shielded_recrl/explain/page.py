"""Pages to browse users and compare runs, rendered on the server; see docs/explain.md.

In: the runs of a study. Out: a Flask application, and the server that `--serve` starts. Pages hold
no script and fetch nothing from elsewhere. Texts of data and model are escaped.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from flask import Flask, Response, abort, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.serving import make_server

from shielded_recrl.errors import UserError
from shielded_recrl.explain.answers import Answer, Recommendation, moves
from shielded_recrl.explain.render import ROLES, weights
from shielded_recrl.explain.runs import Runs
from shielded_recrl.explain.service import Library

# Names of this machine that Werkzeug can compare; it knows none in brackets, such as [::1].
LOOPBACK = ("127.0.0.1", "localhost")
LAST_PORT = 2**16 - 1
USERS_A_PAGE = 50
PARTS = {"train": "training", "protected": "protected", "heldout": "held out", "none": "none"}
MOST_ITEMS = 20
# What a page may do: read its own style sheet, and send its forms back.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class Row(NamedTuple):
    """The recommendations of one place: one a run, and the places the second has gained."""

    position: int
    shown: list[Recommendation | None]
    moved: int | None


def create_app(library: Library, trusted: list[str] | None = None) -> Flask:
    """The pages of a study.

    Args:
        library: answers of its runs.
        trusted: host names that are served; all by default.
    """
    app = Flask(__name__)
    app.config["TRUSTED_HOSTS"] = trusted
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.globals |= {"roles": ROLES, "parts": PARTS}
    runs = library.runs

    @app.get("/")
    def home() -> str:
        names = runs.study.datasets
        return render_template(
            "home.html",
            datasets=[(name, runs.finished(name), _seeds(runs, name)) for name in names],
        )

    @app.get("/<name>/")
    def users(name: str) -> str | Response:
        dataset = library.dataset(name)
        wanted = request.args.get("user", "").strip()
        if wanted:
            return redirect(url_for("person", name=name, user=dataset.find(wanted)))
        role = request.args.get("role", "")
        if role not in ("", *ROLES):
            abort(404, f"There is no role {role!r}; there are {', '.join(ROLES)}.")
        people = dataset.people(role or None)
        pages = max(1, -(-len(people) // USERS_A_PAGE))
        page = _number("page", 1, pages, 1)
        shown = people[(page - 1) * USERS_A_PAGE : page * USERS_A_PAGE].tolist()
        latest = {
            user: dataset.thing(history[-1]).title
            for user in shown
            if (history := dataset.history(user))
        }
        return render_template(
            "users.html",
            dataset=dataset,
            role=role,
            people=[dataset.person(user) for user in shown],
            latest=latest,
            count=len(people),
            page=page,
            pages=pages,
        )

    @app.get("/<name>/<int:user>")
    def person(name: str, user: int) -> str:
        dataset = library.dataset(name)
        if not 1 <= user <= dataset.splits.n_users:
            abort(404, f"{name} has no user {user}; its users are 1 to {dataset.splits.n_users}.")
        finished = runs.finished(name)
        if not finished:
            # Says which command makes the first of them.
            runs.run(name, runs.variants(name)[0])
        k = _number("k", 1, MOST_ITEMS, 5)
        chosen = [_run("run", finished) or finished[0]]
        if other := _run("compare", finished):
            chosen.append(other)
        answers = [library.recommend(name, *run, user, k) for run in chosen]
        return render_template(
            "person.html",
            dataset=dataset,
            answers=answers,
            rows=_rows(answers),
            weights=weights(answers),
            identical=len(answers) > 1 and not any(m != 0 for m in moves(*answers)),
            finished=finished,
            chosen=chosen,
            k=k,
            most=MOST_ITEMS,
            kept={key: request.args.get(key) for key in ("run", "compare", "k")},
        )

    @app.errorhandler(UserError)
    def unknown(error: UserError) -> tuple[str, int]:
        return render_template("error.html", title="Not available", message=str(error)), 404

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        message = error.description
        if error.code == 404 and request.url_rule is None:
            message = "There is no such page. The list of datasets is a good place to begin."
        return render_template("error.html", title=error.name, message=message), error.code or 500

    @app.errorhandler(SecurityError)
    def untrusted(error: SecurityError) -> tuple[str, int, dict[str, str]]:
        # No address was accepted that links could be made from.
        return "This address is not served.\n", 400, {"Content-Type": "text/plain"}

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"
        return response

    return app


def open_pages(runs: Runs, host: str, port: int) -> None:
    """Serve the pages of a study until interrupted.

    Args:
        runs: of the study.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.

    Raises:
        UserError: there is no such port.
    """
    if not 0 <= port <= LAST_PORT:
        raise UserError(f"--port {port}: expected 0 to {LAST_PORT}; 0 takes a free one")
    trusted = list(LOOPBACK) if host in (*LOOPBACK, "::1") else None
    app = create_app(Library(runs), trusted)
    # What is at hand already need not wait for what is being generated.
    server = make_server(host, port, app, threaded=True)
    shown = "localhost" if host == "::1" else f"[{host}]" if ":" in host else host
    if trusted is None:
        print(
            f"{host} is no loopback address: whoever reaches it can read every user's history",
            file=sys.stderr,
        )
    print(f"http://{shown}:{server.server_port}/ (interrupt to stop)", flush=True)
    server.serve_forever()


def _seeds(runs: Runs, dataset: str) -> dict[str, list[int]]:
    """The seeds of each variant on a dataset."""
    return {variant: runs.seeds(dataset, variant) for variant in runs.variants(dataset)}


def _rows(answers: list[Answer]) -> list[Row]:
    """Recommendations by place, of one run or of two."""
    gained = moves(*answers) if len(answers) > 1 else []
    longest = max(len(answer.recommendations) for answer in answers)
    return [
        Row(
            place + 1,
            [
                answer.recommendations[place] if place < len(answer.recommendations) else None
                for answer in answers
            ],
            gained[place] if place < len(gained) else None,
        )
        for place in range(longest)
    ]


def _number(name: str, least: int, most: int, default: int) -> int:
    """A whole number of the query."""
    text = request.args.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        abort(400, f"{name}: expected a whole number from {least} to {most}, got {text[:20]!r}.")
    return int(text)


def _run(name: str, finished: list[tuple[str, int]]) -> tuple[str, int] | None:
    """A run of the query, as variant-seed; None where it is not given."""
    text = request.args.get(name, "")
    if not text:
        return None
    known = {f"{variant}-{seed}": (variant, seed) for variant, seed in finished}
    if text not in known:
        abort(404, f"There is no finished run {text[:60]!r}; there are {', '.join(known)}.")
    return known[text]
