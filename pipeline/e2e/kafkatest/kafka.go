// Package kafkatest starts Apache Kafka for tests: one node in KRaft mode, as a separate
// process on the loopback address, with its data in a directory.
//
// Start reading at [Start]. Tests that need Kafka run only if [Enabled] returns true. They
// have "Kafka" in their names, by which `make test-kafka` selects them and checks that
// they ran.
//
// If KAFKA_BROKERS is set (host:port, separated by commas), the tests use that cluster
// instead, over plaintext. Tests that kill the broker do not run then.
package kafkatest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// startTimeout is long enough for a JVM that shares two cores with tests under the race
// detector.
const startTimeout = 90 * time.Second

// Enabled reports whether MILLRACE_TEST_KAFKA requests tests on a Kafka broker: it is set
// and not 0. Otherwise `go test ./...` needs no Java.
func Enabled() bool {
	v := os.Getenv("MILLRACE_TEST_KAFKA")
	return v != "" && v != "0"
}

// Config configures a broker. The zero value suits most tests.
type Config struct {
	// Dir is the directory of the broker's data and of its log, broker.log. "" means a
	// temporary directory, which Stop removes.
	Dir string

	// Properties are broker settings (server.properties). They override those of this
	// package.
	Properties map[string]string

	// Users maps user names to passwords. The users connect with SASL PLAIN at the address
	// that [Broker.SASL] returns, where they may do only what ACLs allow. Clients at the
	// other address may do everything.
	Users map[string]string
}

// Broker is a broker started by [Start], or the cluster of KAFKA_BROKERS. It is not safe
// for concurrent use.
type Broker struct {
	brokers []string
	sasl    string // "" without users
	outside bool   // cluster of KAFKA_BROKERS, which must not be stopped

	dir       string
	temporary bool   // Stop removes dir
	jars      string // directory of the class path
	clusterID string

	java process
}

// Start starts a broker and waits up to 90 seconds until it answers. The first call also
// fetches the jars from Maven Central. ctx bounds the start, not the life of the broker.
// The caller must call Stop.
//
// Start needs java (17 or newer) and mvn on the PATH.
func Start(ctx context.Context, cfg Config) (*Broker, error) {
	if list := os.Getenv("KAFKA_BROKERS"); list != "" {
		b := &Broker{brokers: strings.Split(list, ","), outside: true}
		if err := b.ready(ctx); err != nil {
			return nil, fmt.Errorf("KAFKA_BROKERS=%s: %w", list, err)
		}
		return b, nil
	}
	jars, err := kafkaJars(ctx)
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

// kafkaJars returns the directory of the broker's jars, which include Kafka's consumer.
func kafkaJars(ctx context.Context) (string, error) {
	return fetched{name: filepath.Join("kafka", Version()), pom: kafkaPOM, goal: "copy-dependencies"}.fetch(ctx, ", or set KAFKA_BROKERS to a test cluster")
}

// Brokers returns the addresses of the brokers as host:port. A restart does not change
// them.
func (b *Broker) Brokers() []string { return slices.Clone(b.brokers) }

// SASL returns the address for the users of [Config], or "" if there are none.
func (b *Broker) SASL() string { return b.sasl }

// External reports whether this is the cluster of KAFKA_BROKERS. Tests cannot kill it, and
// other programs may use it at the same time.
func (b *Broker) External() bool { return b.outside }

// String returns the version and the addresses of the broker.
func (b *Broker) String() string {
	if b.outside {
		return "the Kafka of KAFKA_BROKERS at " + strings.Join(b.brokers, ",")
	}
	return "Apache Kafka " + Version() + " at " + strings.Join(b.brokers, ",")
}

var errOutside = errors.New("tests must not kill or restart the cluster of KAFKA_BROKERS")

// Kill ends the broker with SIGKILL and waits until it has ended. Unlike after a power
// failure, the operating system still writes its page cache to the disk.
func (b *Broker) Kill() error {
	if b.outside {
		return errOutside
	}
	return b.java.kill()
}

// Restart starts the broker again with the same address and data, and waits until it
// answers. It stops a running broker first.
func (b *Broker) Restart(ctx context.Context) error {
	if b.outside {
		return errOutside
	}
	if err := b.java.terminate(); err != nil {
		return err
	}
	return b.launch(ctx)
}

// Stop ends the broker with SIGTERM, or after 30 seconds with SIGKILL, and removes a
// temporary directory. It returns an error with the end of the broker's log if the broker
// had died before.
func (b *Broker) Stop() error {
	if b.outside {
		return nil
	}
	err := b.java.terminate()
	if b.temporary {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return err
}

// settings returns the settings of a small node with short timeouts.
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

		// Using a topic that does not exist is a bug in the test.
		"auto.create.topics.enable": "false",

		// There is only one node for replicas.
		"offsets.topic.replication.factor":                 "1",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		"min.insync.replicas":                              "1",

		// With the default of 50 partitions each, the first use takes seconds.
		"offsets.topic.num.partitions":         "4",
		"transaction.state.log.num.partitions": "4",

		// Tests wait for rebalances and timeouts, so make them short, and allow clients to
		// request even shorter ones.
		"group.initial.rebalance.delay.ms":                            "0",
		"group.min.session.timeout.ms":                                "1000",
		"group.consumer.min.session.timeout.ms":                       "1000",
		"group.consumer.session.timeout.ms":                           "6000",
		"group.consumer.min.heartbeat.interval.ms":                    "100",
		"group.consumer.heartbeat.interval.ms":                        "1000",
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",

		// A killed broker can register again only after the controller has ended its old
		// session. 3 s is shorter than the default of 9 s, but enough for a busy machine.
		"broker.session.timeout.ms":    "3000",
		"broker.heartbeat.interval.ms": "500",

		// Small enough for a heap of 512 MB.
		"log.cleaner.dedupe.buffer.size": "16777216",
		"num.network.threads":            "2",
		"num.io.threads":                 "4",
	}
}

// format chooses the addresses, writes server.properties and formats the data directory.
// The node gets the default features of its release, which include transaction version 2
// (KIP-890).
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

// guarded returns the settings for an additional SASL listener, at which the broker checks
// the users' permissions.
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
		"super.users":           "User:ANONYMOUS", // clients of the plaintext listener
	}
}

func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }

// launch starts the process and waits until it answers.
func (b *Broker) launch(ctx context.Context) error {
	b.java.name, b.java.dir = "broker", b.dir
	if err := b.java.start("-Xmx512m", "-XX:-UsePerfData", "-Djava.awt.headless=true",
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
		"-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn", // info would log pages of defaults
		"-cp", filepath.Join(b.jars, "*"), "kafka.Kafka", b.properties()); err != nil {
		return err
	}
	return b.ready(ctx)
}

// ready waits until the broker's metadata lists a broker and a controller. A KRaft broker
// appears there after its controller has accepted it.
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
				return fmt.Errorf("%s is the address of another Kafka cluster, %s", b.brokers[0], meta.Cluster)
			case len(meta.Brokers) > 0 && meta.Controller >= 0:
				return nil
			}
			err = errors.New("no broker or no controller yet")
		}
		select {
		case <-b.java.exited: // nil for an outside cluster, so it never fires
			return b.java.alive()
		case <-ctx.Done():
			return fmt.Errorf("the broker does not answer: %w (%w)%s", err, ctx.Err(), b.java.logTail())
		case <-tick.C:
		}
	}
}
