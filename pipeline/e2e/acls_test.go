package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/sandbox"
)

// permission is a permission in the output of `processor explain --json`.
type permission struct {
	Operation, Resource, Name, Pattern string
	Optional                           bool
}

// permissions returns the permissions that a worker needs according to explain.
func permissions(t *testing.T, args ...string) (all []permission) {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, "processor"), append([]string{"explain", "--json"}, args...)...).Output()
	if err != nil {
		t.Fatalf("processor explain: %v", err)
	}
	var plan struct {
		Pipelines []struct {
			ACLs []permission `json:"acls"`
		} `json:"pipelines"`
	}
	if err := json.Unmarshal(out, &plan); err != nil {
		t.Fatal(err)
	}
	for _, pl := range plan.Pipelines {
		all = append(all, pl.ACLs...)
	}
	return all
}

// rule returns the ACL that grants a permission to a user.
func (p permission) rule(t *testing.T, user string) *kadm.ACLBuilder {
	t.Helper()
	operation, err := kmsg.ParseACLOperation(p.Operation)
	if err != nil {
		t.Fatal(err)
	}
	pattern, err := kmsg.ParseACLResourcePatternType(p.Pattern)
	if err != nil {
		t.Fatal(err)
	}
	rule := kadm.NewACLs().Allow("User:" + user).AllowHosts().Operations(operation).ResourcePatternType(pattern)
	switch p.Resource {
	case "topic":
		return rule.Topics(p.Name)
	case "group":
		return rule.Groups(p.Name)
	case "transactional-id":
		return rule.TransactionalIDs(p.Name)
	}
	t.Fatalf("explain names the resource type %s, which this test does not know", p.Resource)
	return nil
}

// TestKafkaPermissionsOfExplain checks the permissions that explain names, on a broker with
// ACLs: a worker runs with all of them, and fails without any that is not optional.
func TestKafkaPermissionsOfExplain(t *testing.T) {
	const user, password = "worker", "not-a-secret"
	onKafkaWith(t, kafkatest.Config{Users: map[string]string{user: password}}, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		if b.External() {
			t.Log("NOT checked on the cluster of KAFKA_BROKERS: permissions")
			return
		}
		registry, err := sandbox.New(sandbox.Config{NoBroker: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := registry.Close(); err != nil {
				t.Error(err)
			}
		})
		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Brokers()...))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		adm := kadm.NewClient(cl)

		secret := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
		common := []string{"-t", "../../topology.yaml", "-r", registry.RegistryURL()}
		with := append([]string{"-b", b.SASL(), "--instance", "one",
			"-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN", "-X", "sasl.username=" + user, "-X", "sasl.password.file=" + secret}, common...)
		all := permissions(t, with...)
		if len(all) < 5 {
			t.Fatalf("explain names only %v", all)
		}
		allow := func(p permission) {
			t.Helper()
			created, err := adm.CreateACLs(t.Context(), p.rule(t, user))
			if err != nil || len(created) != 1 || created[0].Err != nil {
				t.Fatalf("allowing %v: %v, %v", p, created, err)
			}
		}
		forbid := func(p permission) {
			t.Helper()
			deleted, err := adm.DeleteACLs(t.Context(), p.rule(t, user))
			if err != nil || len(deleted) != 1 || deleted[0].Err != nil || len(deleted[0].Deleted) != 1 {
				t.Fatalf("forbidding %v: %v, %v", p, deleted, err)
			}
		}
		for _, p := range all {
			allow(p)
		}

		// With all permissions, the worker also creates its topics.
		w := startWorker(t, "processor", with...)
		send := exec.Command(filepath.Join(bin, "producer"), append([]string{"generate", "--events", "2000", "-b", strings.Join(b.Brokers(), ",")}, common...)...)
		if out, err := send.CombinedOutput(); err != nil {
			t.Fatalf("producer generate: %v\n%s", err, out)
		}
		w.await(t, "all events to be counted", func(ctx context.Context) (bool, error) {
			_, text, err := get(ctx, w.url+"/metrics")
			return strings.Contains(string(text), `millrace_events_in_total{pipeline="enrich"} 2000`), err
		})
		w.stop(t)
		if text, err := os.ReadFile(w.output); err != nil || strings.Contains(string(text), "the default limit applies") {
			t.Errorf("the worker cannot read the limits of its topics: %v\n%s", err, text)
		}

		// Without one permission, a dry run reports that. Create is no longer needed: the
		// topics exist.
		for _, p := range all {
			if p.Operation == "Create" {
				continue
			}
			t.Run(fmt.Sprintf("without %s of %s %s", p.Operation, p.Resource, p.Name), func(t *testing.T) {
				forbid(p)
				defer allow(p)
				if p.Optional {
					dryRunWithoutLimit(t, p.Name, with...)
					return
				}
				out := failingDryRun(t, with...)
				if !strings.Contains(strings.ToUpper(out), "AUTHORIZATION") && !strings.Contains(strings.ToLower(out), "not allowed") && !strings.Contains(strings.ToLower(out), "may not") {
					t.Errorf("the output does not mention a missing permission:\n%s", out)
				}
			})
		}
	})
}

// dryRunWithoutLimit runs a dry run that must succeed without reporting the record limit of
// a topic.
func dryRunWithoutLimit(t *testing.T, topic string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "processor"), append([]string{"dry-run"}, args...)...).CombinedOutput()
	known := false
	for line := range strings.Lines(string(out)) {
		known = known || strings.Contains(line, "topic "+topic+":") && strings.Contains(line, "bytes at most")
	}
	if err != nil || known {
		t.Errorf("processor dry-run: %v\n%s", err, out)
	}
}

// failingDryRun runs a dry run that must fail, and returns its output.
func failingDryRun(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "processor"), append([]string{"dry-run"}, args...)...).CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Errorf("processor dry-run: %v\n%s", err, out)
	}
	return string(out)
}
