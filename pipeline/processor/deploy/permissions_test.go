package deploy_test

import (
	"bytes"
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
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/programs"
)

func TestDryRunReportsMissingPermissions(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	file := b.File(harness.PlainTopology)
	type grant struct {
		resource kmsg.ACLResourceType
		name     string
		op       kmsg.ACLOperation
	}
	topic, group, txn := kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeGroup, kmsg.ACLResourceTypeTransactionalId
	enough := []grant{
		{topic, "in", kmsg.ACLOperationRead}, {topic, "out", kmsg.ACLOperationWrite}, {topic, "dead", kmsg.ACLOperationWrite},
		{group, "t-p", kmsg.ACLOperationRead}, {txn, "t-p-a-0", kmsg.ACLOperationWrite},
	}
	tests := []struct {
		name    string
		without int    // index in enough of the missing grant; -1 for none
		instead *grant // replaces the missing grant; nil for none
		want    []string
	}{
		{"nothing is missing", -1, nil, []string{"no faults"}},
		{"the source cannot be described", 0, nil, []string{"fault  topic in: TOPIC_AUTHORIZATION_FAILED"}},
		{"the source cannot be read", 0, &grant{topic, "in", kmsg.ACLOperationDescribe}, []string{"fault  topic in: this user may not READ: grant it"}},
		{"the output cannot be written", 1, &grant{topic, "out", kmsg.ACLOperationRead}, []string{"fault  topic out: this user may not WRITE: grant it"}},
		{"dead letters cannot be written", 2, &grant{topic, "dead", kmsg.ACLOperationRead}, []string{"fault  topic dead: this user may not WRITE: grant it"}},
		{"the group cannot be described", 3, nil, []string{"fault  group t-p: GROUP_AUTHORIZATION_FAILED"}},
		{"the transactional id cannot be described", 4, nil, []string{"fault  transactional id t-p-a-0: TRANSACTIONAL_ID_AUTHORIZATION_FAILED"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var acls []kfake.ACL
			allow := func(g grant) {
				acls = append(acls, kfake.ACL{Resource: g.resource, Name: g.name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: g.op, Allow: true})
			}
			for i, g := range enough {
				if i != test.without {
					allow(g)
				}
			}
			if test.instead != nil {
				allow(*test.instead)
			}
			broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(),
				kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "worker", "secret", acls...))
			if err != nil {
				t.Fatal(err)
			}
			defer broker.Close()
			cl, err := kgo.NewClient(kgo.SeedBrokers(broker.ListenAddrs()...), kgo.SASL(plain.Auth{User: "admin", Pass: "admin"}.AsMechanism()))
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			for name, partitions := range map[string]int32{"in": 4, "out": 4, "dead": 1} {
				if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), partitions, 1, nil, name); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			env := &cli.Env{Stdout: &out, Stderr: &out, Now: time.Now, LookupEnv: func(name string) (string, bool) {
				v, ok := map[string]string{"MILLRACE_SASL_USERNAME": "worker", "MILLRACE_SASL_PASSWORD": "secret"}[name]
				return v, ok
			}}
			code := env.Main([]string{"dry-run", "-t", file, "-b", strings.Join(broker.ListenAddrs(), ","), "-r", b.RegistryURL, "--instance", "a",
				"-X", "sasl.mechanism=PLAIN", "-X", "security.protocol=SASL_PLAINTEXT"}, programs.Processor)
			if want := map[bool]int{true: cli.ExitOK, false: cli.ExitFailure}[test.without < 0]; code != want {
				t.Errorf("exit code %d, want %d:\n%s", code, want, out.String())
			}
			harness.WantLines(t, out.String(), test.want...)
		})
	}
}
