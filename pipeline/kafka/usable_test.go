package kafka

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"millrace/pipeline/kafka/auth"
)

// guardedCluster starts a cluster with ACLs, on which a user may use the topics that start
// with "a" only. It returns the configuration of that user, and an admin client.
func guardedCluster(t *testing.T) (Config, *kadm.Client) {
	t.Helper()
	var acls []kfake.ACL
	for _, op := range []kmsg.ACLOperation{kmsg.ACLOperationRead, kmsg.ACLOperationWrite} {
		acls = append(acls, kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: "a", Pattern: kmsg.ACLResourcePatternTypePrefixed, Operation: op, Allow: true})
	}
	acls = append(acls, kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: "read.only", Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: kmsg.ACLOperationRead, Allow: true})
	c := newCluster(t, 1, kfake.SeedTopics(1, "a1", "a2", "read.only", "secret"), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "worker", "secret", acls...))
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.SASL(plain.Auth{User: "admin", Pass: "admin"}.AsMechanism()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	cfg := c.config()
	cfg.SASL = auth.SASL{Mechanism: "PLAIN", Username: "worker", Password: auth.NewSecret("secret")}
	return cfg, kadm.NewClient(cl)
}

// A topic is unusable if it does not exist or a permission is lacking, and the reason says
// which.
func TestTopicsThatCannotBeUsedAreNamedWithTheReason(t *testing.T) {
	t.Parallel()
	cfg, _ := guardedCluster(t)
	uses := Uses{}
	uses.Add("a1", "READ", "WRITE")
	uses.Add("read.only", "READ")
	uses.Add("read.only", "WRITE", "READ")
	uses.Add("secret", "READ")
	uses.Add("a.gone", "READ")
	why, err := Unusable(t.Context(), cfg, uses)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"read.only": "topic read.only: this user may not WRITE: grant it",
		"secret":    "topic secret: this user may not READ: grant it",
		"a.gone":    "topic a.gone: it does not exist; create it again with the same number of partitions",
	}
	got := map[string]string{}
	for name, err := range why {
		got[name] = err.Error()
		if errors.Is(err, ErrNoTopic) != (name == "a.gone") {
			t.Errorf("%s: ErrNoTopic is wrong in the chain of %v", name, err)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Topics that are deleted, or may not be read any more, end the watch with their names.
func TestTheWatchEndsWhenTopicsCannotBeUsed(t *testing.T) {
	t.Parallel()
	cfg, adm := guardedCluster(t)
	uses := Uses{"a1": {"READ"}, "a2": {"READ", "WRITE"}}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ended <- WatchUses(ctx, cfg, uses) }()
	deny := kadm.NewACLs().Topics("a2").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead).Deny("User:worker").DenyHosts()
	if _, err := adm.CreateACLs(t.Context(), deny); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "topic a2: this user may not READ: grant it") || strings.Contains(err.Error(), "a1") {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := adm.DeleteTopics(t.Context(), "a1"); err != nil {
		t.Fatal(err)
	}
	why, err := Unusable(t.Context(), cfg, uses)
	if names := slices.Sorted(maps.Keys(why)); err != nil || !slices.Equal(names, []string{"a1", "a2"}) {
		t.Errorf("unusable: %v, %v", why, err)
	}
	go func() { ended <- WatchUses(ctx, cfg, Uses{"read.only": {"READ"}}) }()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("a watch whose context ends returns %v", err)
	}
}
