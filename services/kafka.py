"""Apache Kafka itself: one KRaft node, from the jars that kafka.xml names, checked against kafka.sha256, or in a container."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from services.container import Container, Image, or_image
from services.packages import apt_install, cache
from services.process import LOOPBACK, Found, Missing, Server, ServerFailed, Tls, free_port, last_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

_HERE = Path(__file__).parent
_POM = _HERE / "kafka.xml"
_SUMS = _HERE / "kafka.sha256"
_JAVA_AT_LEAST = 17
_CLUSTER = "dGFwZWxpbmUtdGVzdHMtMQ"
_CHECKPOINT = "bootstrap.checkpoint"
#: What lives for a second is done before the second compiler helps.
_SHORT_LIVED = "-XX:TieredStopAtLevel=1"

Listener = Literal["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"]

_LOGGING = """<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %c{1} %m%n"/></Console></Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""
#: One node on a small machine, whose tests do not wait for what only matters to many.
_SETTINGS = {
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "3",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "4194304",
}


class Java(NamedTuple):
    """A Java runtime."""

    program: str
    version: str


def java() -> Java:
    """The one of JAVA_HOME or on the path, or `Missing`."""
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    # Each runtime says in this file what it is: quicker than asking it.
    release = Path(program or "java").resolve().parents[1] / "release"
    which = re.search(r'JAVA_VERSION="((\d+)[^"]*)"', release.read_text() if release.exists() else "")
    if program is None or which is None or int(which[2]) < _JAVA_AT_LEAST:
        raise Missing(f"no Java {_JAVA_AT_LEAST} or later")
    return Java(program, which[1])


def version() -> str:
    """Of the broker and its tools."""
    return str(re.findall(r"<kafka\.version>(.*)</kafka\.version>", _POM.read_text())[0])


def find() -> Found | Image:
    """The jars, or else the image, or `Missing`."""
    return or_image(installed, "kafka")


def installed() -> Found:
    """The jars in the cache, or `Missing`."""
    java()
    folder = _folder()
    if not folder.is_dir() or {jar.name for jar in folder.glob("*.jar")} != set(_sums()):
        raise Missing(f"Kafka's jars are not in {folder}")
    return Found(version(), folder)


def install() -> None:
    """Java and Maven from Debian's packages, the jars by Maven, and an archive of loaded classes that halves the time of every start."""
    try:
        java()
    except Missing:
        apt_install(f"openjdk-{_JAVA_AT_LEAST}-jre-headless")
    folder = _folder()
    if _wrong(folder):
        if shutil.which("mvn") is None:
            apt_install("maven")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            fetched = Path(scratch) / "jars"
            _fetch(fetched)
            if wrong := _wrong(fetched):
                raise Missing(f"what Maven fetched is not what {_SUMS.name} says: {', '.join(wrong)}")
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(FileExistsError, OSError):  # another install was quicker
                fetched.rename(folder)
    if _wrong(folder):
        raise Missing(f"Kafka's jars did not get to {folder}")
    if not (_archive(java()).exists() and _formatted().exists()):
        _rehearse()


def _folder() -> Path:
    return cache() / f"kafka-{version()}"


def _archive(with_java: Java) -> Path:
    return cache() / f"kafka-{version()}-java-{with_java.version}.jsa"


def _formatted() -> Path:
    """What formatting writes for a broker without users: kept, since it takes a Java of its own."""
    return cache() / f"kafka-{version()}.checkpoint"


def _sums() -> dict[str, str]:
    return {name: digest for digest, name in (line.split() for line in _SUMS.read_text().splitlines())}


def _digests(folder: Path) -> dict[str, str]:
    return {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in sorted(folder.glob("*.jar"))}


def _wrong(folder: Path) -> list[str]:
    """Jars that are missing, too many or different."""
    return sorted({name for name, _ in _sums().items() ^ _digests(folder).items()})


def _fetch(to: Path) -> None:
    command = [
        "mvn",
        "-q",
        "-B",
        "-ntp",
        "-f",
        str(_POM),
        "dependency:copy-dependencies",
        f"-DoutputDirectory={to}",
        "-DincludeScope=runtime",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Missing(f"Maven: {problem}") from None
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if "ERROR" in line]
        raise Missing(f"Maven: {said[0] if said else done.stderr.strip()}")


def _rehearse() -> None:
    """Run a broker and a tool once: keep what formatting wrote, and let Java write down the classes that they loaded."""
    archive, formatted = _archive(java()), _formatted()
    archive.unlink(missing_ok=True)
    formatted.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f".{archive.stem}-") as scratch:
        written = Path(scratch) / "classes.jsa"
        with suppress(ServerFailed), KafkaBroker(Path(scratch) / "broker", java_flags=(f"-XX:ArchiveClassesAtExit={written}",)) as broker:
            broker.create_topic("classes")
            broker.producer_perf_test("classes", records=1000)
            (broker.data / formatted.name).write_bytes((broker.data / _CHECKPOINT).read_bytes())
            (broker.data / formatted.name).rename(formatted)
        if written.exists():
            written.rename(archive)


class KafkaBroker(Server):
    """Broker and controller in one. It listens in plain text; with `users` also for SASL, with `tls` for TLS, with both for both.

    In a cluster controllers outlive a killed broker, and take its partitions from it before it is back. Here both die together, and a
    broker that starts with its old partitions may forget the marker of a transaction that was just committed (its log: "likely deleted
    already and hence can be skipped"): readers of what is committed would stand still for ever. So after a crash `start` first lets a
    controller alone take note of it.
    """

    name: ClassVar[str] = "kafka"

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        users: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        settings: Mapping[str, str] | None = None,
        heap: str = "512m",
        java_flags: tuple[str, ...] = (),
    ) -> None:
        """`users`: passwords by name, for PLAIN and SCRAM-SHA-512 alike. `settings`: further lines of server.properties."""
        super().__init__(folder, port)
        self.users = dict(users or {})
        self.tls = tls
        self.settings = dict(settings or {})
        self.heap = heap
        self.java_flags = java_flags
        self.data = folder / "data"
        self.controller_port = free_port()
        self._further_ports: dict[Listener, int] = {"SASL_PLAINTEXT": free_port(), "SSL": free_port(), "SASL_SSL": free_port()}
        listeners: list[Listener] = []
        if self.users:
            listeners += ["SASL_PLAINTEXT"]
        if tls:
            listeners += ["SSL"]
        if self.users and tls:
            listeners += ["SASL_SSL"]
        #: Host and port of each listener.
        self.addresses: dict[Listener, str] = {"PLAINTEXT": self.address}
        self.addresses |= {name: f"{LOOPBACK}:{self._further_ports[name]}" for name in listeners}

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def prepare(self) -> None:
        (self.folder / "log4j2.xml").write_text(_LOGGING)
        lines = [f"{name}={value}" for name, value in (self.node() | self._security() | _SETTINGS | self.settings).items()]
        self._properties.write_text("\n".join([*lines, ""]))
        self._properties.chmod(0o600)
        if (self.data / "meta.properties").exists():
            if not (self.data / ".kafka_cleanshutdown").exists():
                with suppress(ServerFailed), _Controller(self):
                    time.sleep(0.2)
            return
        if _formatted().exists() and not self.users and self._container is None:
            self.data.mkdir(exist_ok=True)
            (self.data / _CHECKPOINT).write_bytes(_formatted().read_bytes())
            lines = ["version=1", f"cluster.id={_CLUSTER}", "node.id=1", f"directory.id=a{secrets.token_urlsafe(16)[1:]}", ""]
            (self.data / "meta.properties").write_text("\n".join(lines))
            return
        scram = [f"--add-scram=SCRAM-SHA-512=[name={name},password={password}]" for name, password in self.users.items()]
        self._tool("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._properties), *scram)

    def container(self) -> Container | None:
        if isinstance(find(), Image):
            return Container("kafka", self.folder, self.port, **self._further_ports)
        return None

    def program(self) -> str:
        return java().program

    def arguments(self) -> list[str]:
        return [*self.java_arguments(self.heap), *self.java_flags, "kafka.Kafka", str(self._properties)]

    def answers(self) -> bool:
        """To ApiVersions, which a broker answers once it takes requests at all."""
        asked = struct.pack(">hhih", 18, 0, 7, -1)
        with socket.create_connection((LOOPBACK, self.port), 2.0) as connection, connection.makefile("rb") as reader:
            connection.sendall(struct.pack(">i", len(asked)) + asked)
            head = reader.read(10)
        return len(head) == 10 and struct.unpack(">iih", head)[1:] == (7, 0)

    def create_topic(self, topic: str, partitions: int = 1, **settings: str) -> None:
        """With settings such as `retention_ms="1000"`."""
        flags = [flag for name, value in settings.items() for flag in ("--config", f"{name.replace('_', '.')}={value}")]
        self.topics("--create", "--topic", topic, "--partitions", str(partitions), *flags)

    def topics(self, *flags: str) -> str:
        """Kafka's own kafka-topics."""
        return self._tool("org.apache.kafka.tools.TopicCommand", "--bootstrap-server", self.address, *flags)

    def consumer_groups(self, *flags: str) -> str:
        """Kafka's own kafka-consumer-groups: `consumer_groups("--describe", "--group", "store")`."""
        return self._tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "--bootstrap-server", self.address, *flags)

    def transactions(self, *flags: str) -> str:
        """Kafka's own kafka-transactions."""
        return self._tool("org.apache.kafka.tools.TransactionsCommand", "--bootstrap-server", self.address, *flags)

    def producer_perf_test(self, topic: str, *, records: int, size: int = 100, throughput: int = -1, **properties: str) -> str:
        """Kafka's own kafka-producer-perf-test, with producer properties such as `linger_ms="5"`; what it printed."""
        given = [f"{name.replace('_', '.')}={value}" for name, value in properties.items()]
        flags = ["--topic", topic, "--num-records", str(records), "--record-size", str(size), "--throughput", str(throughput)]
        flags += ["--bootstrap-server", self.address]
        if given:
            flags += ["--command-property", *given]
        return self._tool("org.apache.kafka.tools.ProducerPerformance", *flags, timeout_s=600)

    def node(self) -> dict[str, str]:
        """What its settings say of where it is: both roles."""
        advertised = ",".join(f"{name}://{address}" for name, address in self.addresses.items())
        controller = f"CONTROLLER://{LOOPBACK}:{self.controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{LOOPBACK}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": f"{advertised.replace(LOOPBACK, self.listens_on)},{controller}",
            "advertised.listeners": advertised,
            "listener.security.protocol.map": ",".join(["CONTROLLER:PLAINTEXT", *(f"{name}:{name}" for name in self.addresses)]),
            "log.dirs": str(self.data),
        }

    def _security(self) -> dict[str, str]:
        said: dict[str, str] = {}
        if self.users:
            known = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
            said["sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-512"
            for listener in ("sasl_plaintext", "sasl_ssl"):
                of = f"listener.name.{listener}"
                said[f"{of}.plain.sasl.jaas.config"] = f"org.apache.kafka.common.security.plain.PlainLoginModule required {known};"
                said[f"{of}.scram-sha-512.sasl.jaas.config"] = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        if self.tls:
            both = self.folder / "server.pem"
            both.write_text(self.tls.key.read_text() + self.tls.certificate.read_text())
            both.chmod(0o600)
            said |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(both)}
            said |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.within(self.tls.authority))}
        return said

    def java_arguments(self, heap: str) -> list[str]:
        """What Java is told, whichever class it is to run."""
        # Serial collection: few threads on a small machine.
        flags = [
            f"-Xmx{heap}",
            f"-Xms{heap}",
            "-XX:+UseSerialGC",
            "-Xlog:disable",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.xml'}",
        ]
        if self._container:
            return [*flags, "-cp", "/opt/kafka/libs/*"]
        # The order of the jars is part of the archive's identity.
        folder = installed().where
        flags += ["-cp", ":".join(str(folder / name) for name in sorted(_sums()))]
        archive = _archive(java())
        return [*([f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []), *flags]

    def _tool(self, tool: str, *flags: str, timeout_s: float = 60) -> str:
        arguments = [*self.java_arguments("256m"), _SHORT_LIVED, tool, *flags]
        if self._container is None:
            command = [self.program(), *arguments]
        else:
            command = self._container.inside("java", *arguments) if self.running else self._container.once(*arguments)
        log = self.folder / "tools.log"
        with log.open("ab") as said:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True, check=False, timeout=timeout_s
                )
            except subprocess.TimeoutExpired:
                raise ServerFailed(f"{tool} took more than {timeout_s:.0f} s; {last_lines(log)}") from None
        if done.returncode:
            raise ServerFailed(f"{tool} ended with status {done.returncode}: {done.stdout.strip()}; {last_lines(log)}")
        return done.stdout

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"


class _Controller(Server):
    """A crashed broker's controller alone. It answers once it has taken note that the broker is gone."""

    name: ClassVar[str] = "controller"
    start_within_s: ClassVar[float] = 15.0

    def __init__(self, broker: KafkaBroker) -> None:
        super().__init__(broker.folder, broker.controller_port)
        self._broker = broker

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def prepare(self) -> None:
        said = {
            name: value for name, value in self._broker.node().items() if name not in ("advertised.listeners", "inter.broker.listener.name")
        }
        said |= {"process.roles": "controller", "listeners": f"CONTROLLER://{self.address}"}
        said |= {"broker.session.timeout.ms": "500", "broker.heartbeat.interval.ms": "200"}
        self._properties.write_text("\n".join(f"{name}={value}" for name, value in said.items()))
        self.log.unlink(missing_ok=True)

    def container(self) -> Container | None:
        return self._broker.container()

    def program(self) -> str:
        return self._broker.program()

    def arguments(self) -> list[str]:
        return [*self._broker.java_arguments("256m"), _SHORT_LIVED, "kafka.Kafka", str(self._properties)]

    def answers(self) -> bool:
        return b"Fencing broker 1" in self.log.read_bytes()

    @property
    def _properties(self) -> Path:
        return self.folder / "controller.properties"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        _fetch(Path(scratch) / "jars")
        for name, digest in _digests(Path(scratch) / "jars").items():
            print(f"{digest}  {name}")
