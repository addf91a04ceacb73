package programs_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/auth"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

// A topic of events or of snapshots that is deleted while its projection runs does not hold
// up the others. The topic is not created again by the projector; once it exists, the
// projection runs again.
func TestADeletedTopicDoesNotHoldUpOtherProjections(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldProjections)
	box := harness.Sandbox(t)
	adm := admin(t, box)
	projector := run(programs.Projector, box, "run", "-t", file, "--sessions", "2", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", dir+"/address", "--data-dir", filepath.Join(dir, "data"))
	defer projector.stop(t)
	awaitReady(t, dir+"/address")
	address := addressOf(t, dir+"/address")
	clicks, odd := newClickSender(t, box, "in"), newClickSender(t, box, "odd")
	clicks.send(1)
	odd.send(1)
	for _, name := range []string{"sum", "odd", "strict"} {
		awaitState(t, address, name, "e-1", 1)
	}

	if _, err := adm.DeleteTopics(t.Context(), "odd", "stricts"); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"projection odd":    "topic odd: it does not exist; create it again with the same number of partitions",
		"projection strict": "topic stricts: it does not exist; create it again with the same number of partitions",
	}
	awaitHeld(t, address, want)
	clicks.send(2)
	awaitState(t, address, "sum", "e-2", 2)
	for name := range want {
		name = strings.TrimPrefix(name, "projection ")
		if status, body := get("http://" + address + "/v1/projections/" + name + "/e-1"); status != http.StatusServiceUnavailable || !strings.Contains(body, "it does not exist; create it again") {
			t.Errorf("a question about %s: %d %s", name, status, body)
		}
	}
	if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_projection_running{projection="sum"} 1`, `millrace_projection_running{projection="odd"} 0`, `millrace_projection_running{projection="strict"} 0`) {
		t.Errorf("metrics of the projections:\n%s", metrics)
	}

	createTopics(t, adm, 2, nil, "odd")
	compact := "compact"
	createTopics(t, adm, 2, map[string]*string{"cleanup.policy": &compact}, "stricts")
	again := newClickSender(t, box, "odd")
	again.send(3)
	awaitState(t, address, "odd", "e-3", 3)
	awaitState(t, address, "strict", "e-2", 2)
	awaitHeld(t, address, nil)
	harness.WantLines(t, projector.output.String(), "a version cannot continue; starting the group again with those that can")
}

// awaitHeld waits until a projector is ready and shows exactly these reasons, by check.
func awaitHeld(t *testing.T, address string, want map[string]string) {
	t.Helper()
	var status int
	var reasons map[string]string
	if !until(t, func() bool {
		status, reasons = readyChecks(address)
		for check, reason := range want {
			if !strings.Contains(reasons[check], reason) {
				return false
			}
		}
		return status == http.StatusOK && len(reasons) == len(want)
	}) {
		t.Fatalf("ready: %d %q, want %q", status, reasons, want)
	}
}

// guardedBroker starts a broker with ACLs and a registry. The user "worker" may do everything
// until it is denied.
func guardedBroker(t *testing.T) (broker *kfake.Cluster, registry string, adm *kadm.Client) {
	t.Helper()
	var acls []kfake.ACL
	for resource, name := range map[kmsg.ACLResourceType]string{kmsg.ACLResourceTypeTopic: "*", kmsg.ACLResourceTypeGroup: "*", kmsg.ACLResourceTypeTransactionalId: "*", kmsg.ACLResourceTypeCluster: "kafka-cluster"} {
		acls = append(acls, kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: kmsg.ACLOperationAll, Allow: true})
	}
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "worker", "secret", acls...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	schemas, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := schemas.Close(); err != nil {
			t.Error(err)
		}
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.ListenAddrs()...), kgo.SASL(plain.Auth{User: "admin", Pass: "admin"}.AsMechanism()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return broker, schemas.RegistryURL(), kadm.NewClient(cl)
}

// A permission that is withdrawn from a running projector, or that it never had, concerns
// the projections that need it only. With the permission, they continue.
func TestALackingPermissionDoesNotHoldUpOtherProjections(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldProjections)
	broker, registry, adm := guardedBroker(t)
	deny := func(topic string, op kadm.ACLOperation) *kadm.ACLBuilder {
		return kadm.NewACLs().Topics(topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations(op).Deny("User:worker").DenyHosts()
	}
	create := func(acl *kadm.ACLBuilder) {
		if _, err := adm.CreateACLs(t.Context(), acl); err != nil {
			t.Fatal(err)
		}
	}
	projector := &program{signals: make(chan os.Signal, 1), exit: make(chan int, 1)}
	env := &cli.Env{
		Stdout: &projector.output, Stderr: &projector.output, Now: time.Now, Exit: func(int) {},
		Notify: func() (<-chan os.Signal, func()) { return projector.signals, func() {} },
		LookupEnv: func(name string) (string, bool) {
			v, ok := map[string]string{"MILLRACE_SASL_USERNAME": "worker", "MILLRACE_SASL_PASSWORD": "secret"}[name]
			return v, ok
		},
	}
	go func() {
		projector.exit <- env.Main([]string{"run", "-t", file, "-b", strings.Join(broker.ListenAddrs(), ","), "-r", registry, "--sessions", "1", "--commit-interval", "20ms",
			"-X", "sasl.mechanism=PLAIN", "-X", "security.protocol=SASL_PLAINTEXT", "--listen", "127.0.0.1:0", "--listen-file", dir + "/address", "--data-dir", filepath.Join(dir, "data")}, programs.Projector)
	}()
	defer projector.stop(t)
	awaitReady(t, dir+"/address")
	address := addressOf(t, dir+"/address")
	clicks := newClickSenderTo(t, kafka.Config{Brokers: broker.ListenAddrs(), SASL: auth.SASL{Mechanism: "PLAIN", Username: "admin", Password: auth.NewSecret("admin")}}, registry, "in")
	for i, one := range []struct {
		acl  *kadm.ACLBuilder
		want map[string]string
	}{
		{deny("odd", kadm.OpRead), map[string]string{"projection odd": "topic odd: this user may not READ: grant it"}},
		{deny("stricts", kadm.OpWrite), map[string]string{"projection strict": "topic stricts: this user may not WRITE: grant it"}},
	} {
		create(one.acl)
		awaitHeld(t, address, one.want)
		n := int64(i + 1)
		clicks.send(n)
		awaitState(t, address, "sum", fmt.Sprint("e-", n), n)
		if _, err := adm.DeleteACLs(t.Context(), one.acl); err != nil {
			t.Fatal(err)
		}
		awaitHeld(t, address, nil)
		awaitState(t, address, "strict", fmt.Sprint("e-", n), n)
	}
}
