// Package kafkatest gives tests a real Apache Kafka: one node in KRaft mode, a
// process of its own on the loopback address, with its data in a directory.
//
// Start at [Start]. Tests that need it run only when [Wanted] says so, and have
// "Kafka" in their names: that is how `make test-kafka` knows that they ran.
//
// With KAFKA_BROKERS set (host:port, separated by commas) the tests use that
// cluster instead, over plaintext. Only such tests as kill the broker then do
// not run.
package kafkatest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	startTimeout = 90 * time.Second // of a JVM that shares two cores with a race detector
	stopTimeout  = 30 * time.Second // after SIGTERM, before SIGKILL
)

// Wanted reports whether tests on a real broker are asked for: MILLRACE_TEST_KAFKA
// is set and not 0. Without it, plain `go test ./...` needs no Java.
func Wanted() bool {
	v := os.Getenv("MILLRACE_TEST_KAFKA")
	return v != "" && v != "0"
}

// Config says how a broker is to be. The zero value is good for most tests.
type Config struct {
	// Dir keeps the broker's data and its log, broker.log. If it is empty, that
	// is a temporary directory, which Stop removes.
	Dir string

	// Properties are settings of the broker (server.properties) that are added
	// to those of this package, or take their place.
	Properties map[string]string

	// Users, with their passwords, may connect by SASL PLAIN at the address
	// that [Broker.SASL] returns, and may there do what ACLs allow, no more. At
	// the other address everything is allowed.
	Users map[string]string
}

// Broker is a broker that [Start] has started. Its methods are for one goroutine
// at a time.
type Broker struct {
	brokers []string
	sasl    string // "" without users
	outside bool   // from KAFKA_BROKERS: not ours to stop

	dir       string
	temporary bool   // dir is removed by Stop
	jars      string // directory of the class path
	clusterID string

	cmd    *exec.Cmd     // the process, nil if none was started yet or it was stopped
	exited chan struct{} // closed when cmd has ended and waitErr is set
	// waitErr is how cmd ended; read it after exited is closed.
	waitErr error
}

// Start starts a broker and waits until it answers, up to a minute and a half.
// The jars come from Maven Central the first time, which takes longer; ctx is for
// all of that, not for the life of the broker. Stop must follow.
//
// It needs java (17 or newer) and mvn on the PATH, and says so if they are not.
func Start(ctx context.Context, cfg Config) (*Broker, error) {
	if list := os.Getenv("KAFKA_BROKERS"); list != "" {
		b := &Broker{brokers: strings.Split(list, ","), outside: true}
		if err := b.ready(ctx); err != nil {
			return nil, fmt.Errorf("KAFKA_BROKERS=%s: %w", list, err)
		}
		return b, nil
	}
	jars, err := fetchJars(ctx)
	if err != nil {
		return nil, err
	}
	b := &Broker{jars: jars, dir: cfg.Dir, clusterID: "kafkatest-" + rand.Text()}
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "millrace-kafka-"); err != nil {
			return nil, err
		}
		b.temporary = true
	}
	if err := b.format(ctx, cfg); err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	if err := b.launch(ctx); err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	return b, nil
}

// Brokers returns the addresses to connect to, as host:port. They stay the same
// when the broker is started anew.
func (b *Broker) Brokers() []string { return slices.Clone(b.brokers) }

// SASL returns the address at which the users of the [Config] connect.
func (b *Broker) SASL() string { return b.sasl }

// Outside reports whether this is the cluster of KAFKA_BROKERS, which cannot be
// killed and which others may be using.
func (b *Broker) Outside() bool { return b.outside }

// String says which Kafka this is, and where.
func (b *Broker) String() string {
	if b.outside {
		return "the Kafka of KAFKA_BROKERS at " + strings.Join(b.brokers, ",")
	}
	return "Apache Kafka " + Version() + " at " + strings.Join(b.brokers, ",")
}

var errOutside = errors.New("the cluster of KAFKA_BROKERS is not this test's to kill or restart")

// Kill ends the broker with SIGKILL, as a power cut would but for what the
// operating system has not written to the disk yet, and waits until it is gone.
func (b *Broker) Kill() error {
	if b.outside {
		return errOutside
	}
	if err := b.alive(); err != nil {
		return err
	}
	if err := b.cmd.Process.Kill(); err != nil {
		return err
	}
	<-b.exited
	b.cmd = nil
	return nil
}

// Restart starts the broker again on its address and data, and waits until it
// answers. One that is still running is asked to stop first.
func (b *Broker) Restart(ctx context.Context) error {
	if b.outside {
		return errOutside
	}
	if b.cmd != nil {
		if err := b.terminate(); err != nil {
			return err
		}
	}
	return b.launch(ctx)
}

// Stop ends the broker, with SIGTERM and after half a minute with SIGKILL, waits
// for it and removes its directory if that is a temporary one. A broker that had
// died by itself is an error, with the end of its log.
func (b *Broker) Stop() error {
	if b.outside {
		return nil
	}
	var err error
	if b.cmd != nil {
		err = b.terminate()
	}
	if b.temporary {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return err
}

// alive returns why the process is not running.
func (b *Broker) alive() error {
	if b.cmd == nil {
		return errors.New("the broker is not running")
	}
	select {
	case <-b.exited:
		return fmt.Errorf("the broker died (%w); its log ends:\n%s", b.waitErr, b.logTail())
	default:
		return nil
	}
}

func (b *Broker) terminate() error {
	err := b.alive()
	if err == nil {
		err = b.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.NewTimer(stopTimeout)
		defer timer.Stop()
		select {
		case <-b.exited:
		case <-timer.C:
			err = errors.Join(err, b.cmd.Process.Kill())
			<-b.exited
		}
	}
	b.cmd = nil
	return err
}

// settings are those of a single node that is to react quickly and to be small.
func settings(client, controller, data string) map[string]string {
	return map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        "1",
		"controller.quorum.voters":       "1@" + controller,
		"controller.listener.names":      "CONTROLLER",
		"listeners":                      "PLAINTEXT://" + client + ",CONTROLLER://" + controller,
		"advertised.listeners":           "PLAINTEXT://" + client,
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name":     "PLAINTEXT",
		"log.dirs":                       data,

		// A topic that a test did not create is a mistake of the test.
		"auto.create.topics.enable": "false",

		// There is one node to copy to.
		"offsets.topic.replication.factor":                 "1",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		"min.insync.replicas":                              "1",

		// The default of 50 partitions each costs seconds at the first use.
		"offsets.topic.num.partitions":         "4",
		"transaction.state.log.num.partitions": "4",

		// Tests wait for groups and time-outs: make these short, and let clients
		// ask for shorter ones.
		"group.initial.rebalance.delay.ms":                            "0",
		"group.min.session.timeout.ms":                                "1000",
		"group.consumer.min.session.timeout.ms":                       "1000",
		"group.consumer.session.timeout.ms":                           "6000",
		"group.consumer.min.heartbeat.interval.ms":                    "100",
		"group.consumer.heartbeat.interval.ms":                        "1000",
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",

		// A killed broker may come back when its controller has given up the old
		// one. This is shorter than the default of 9 s, yet long enough for a
		// busy machine.
		"broker.session.timeout.ms":    "3000",
		"broker.heartbeat.interval.ms": "500",

		// Of a heap of 512 MB.
		"log.cleaner.dedupe.buffer.size": "16777216",
		"num.network.threads":            "2",
		"num.io.threads":                 "4",
	}
}

// format chooses the addresses, writes server.properties and formats the data
// directory. The features it gets are those of the release, so transactions are
// those of version 2 (KIP-890).
func (b *Broker) format(ctx context.Context, cfg Config) error {
	client, err := freeAddr()
	if err != nil {
		return err
	}
	controller, err := freeAddr()
	if err != nil {
		return err
	}
	b.brokers = []string{client}
	props := settings(client, controller, filepath.Join(b.dir, "data"))
	if len(cfg.Users) > 0 {
		if b.sasl, err = freeAddr(); err != nil {
			return err
		}
		maps.Copy(props, guarded(props, b.sasl, cfg.Users))
	}
	maps.Copy(props, cfg.Properties)
	var text bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(props)) {
		fmt.Fprintf(&text, "%s=%s\n", k, props[k])
	}
	if err := os.WriteFile(b.properties(), text.Bytes(), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "java", "-cp", filepath.Join(b.jars, "*"), "kafka.tools.StorageTool",
		"format", "--cluster-id", b.clusterID, "--config", b.properties())
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("formatting the broker's storage: %w\n%s", err, out)
	}
	return nil
}

// guarded returns the settings of a broker that has one address more, with users
// whose permissions it checks.
func guarded(props map[string]string, addr string, users map[string]string) map[string]string {
	login := "org.apache.kafka.common.security.plain.PlainLoginModule required"
	for _, name := range slices.Sorted(maps.Keys(users)) {
		login += fmt.Sprintf(" user_%s=%q", name, users[name])
	}
	return map[string]string{
		"listeners":                      props["listeners"] + ",SASL_PLAINTEXT://" + addr,
		"advertised.listeners":           props["advertised.listeners"] + ",SASL_PLAINTEXT://" + addr,
		"listener.security.protocol.map": props["listener.security.protocol.map"] + ",SASL_PLAINTEXT:SASL_PLAINTEXT",
		"sasl.enabled.mechanisms":        "PLAIN",
		"listener.name.sasl_plaintext.plain.sasl.jaas.config": login + ";",

		"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":           "User:ANONYMOUS", // whoever comes without SASL
	}
}

func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }

// launch starts the process and waits until it answers.
func (b *Broker) launch(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(b.dir, "broker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own copy
	cmd := exec.Command("java", "-Xmx512m", "-XX:-UsePerfData", "-Djava.awt.headless=true",
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
		"-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn", // else pages of defaults
		"-cp", filepath.Join(b.jars, "*"), "kafka.Kafka", b.properties())
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	b.cmd, b.exited = cmd, exited
	go func() { // ends with the process; Kill, Restart and Stop wait for it
		b.waitErr = cmd.Wait()
		close(exited)
	}()
	return b.ready(ctx)
}

// ready waits until the broker says that it is one of the living, which a KRaft
// broker does when its controller has let it in.
func (b *Broker) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.RequestRetries(0))
	if err != nil {
		return err
	}
	defer cl.Close()
	admin := kadm.NewClient(cl)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		meta, err := admin.BrokerMetadata(ctx)
		if err == nil {
			switch {
			case b.clusterID != "" && meta.Cluster != b.clusterID:
				return fmt.Errorf("%s is the address of another Kafka, cluster %s", b.brokers[0], meta.Cluster)
			case len(meta.Brokers) > 0 && meta.Controller >= 0:
				return nil
			}
			err = errors.New("it has no broker or no controller yet")
		}
		select {
		case <-b.exited: // nil and so never, if outside
			return b.alive()
		case <-ctx.Done():
			return fmt.Errorf("the broker does not answer: %w (%w)%s", err, ctx.Err(), b.logTail())
		case <-tick.C:
		}
	}
}

// logTail returns the last lines of the broker's log, if it has one.
func (b *Broker) logTail() string {
	f, err := os.Open(filepath.Join(b.dir, "broker.log"))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read from
	const most = 4096
	if _, err := f.Seek(-most, io.SeekEnd); err != nil {
		_, err = f.Seek(0, io.SeekStart) // a short log
		if err != nil {
			return ""
		}
	}
	tail, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return "\n" + string(tail)
}

// freeAddr returns a loopback address that nobody listens on. Its port is below
// those that the system gives to outgoing connections: while a broker is down,
// clients go on dialling its port, and one of these dials could otherwise be
// given that very port, connect to itself, and keep the broker from coming back.
func freeAddr() (string, error) {
	var last error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+mrand.IntN(12000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		return addr, l.Close()
	}
	return "", fmt.Errorf("no free port for the broker: %w", last)
}
