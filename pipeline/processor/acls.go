package processor

import (
	"cmp"
	"slices"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka/properties"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
)

// An acl is a permission on Kafka.
type acl struct {
	Operation string `json:"operation"`
	Resource  string `json:"resource"` // topic, group or transactional-id
	Name      string `json:"name"`
	Pattern   string `json:"pattern"` // literal or prefixed
	For       string `json:"for"`     // its purpose
	Optional  bool   `json:"optional,omitempty"`
}

// aclList is a list of permissions without duplicates.
type aclList []acl

func (l *aclList) add(operation, resource, name, purpose string) {
	same := func(a acl) bool { return a.Operation == operation && a.Resource == resource && a.Name == name }
	if !slices.ContainsFunc(*l, same) {
		*l = append(*l, acl{Operation: operation, Resource: resource, Name: name, Pattern: "literal", For: purpose, Optional: operation == "DescribeConfigs"})
	}
}

func (l *aclList) write(topic, purpose string) {
	l.add("Write", "topic", topic, purpose)
	l.add("DescribeConfigs", "topic", topic, "optional: the size limit of its records")
}

// pipelineACLs returns the permissions that a worker of a pipeline needs, and the optional
// ones. READ and WRITE imply DESCRIBE. An idempotent producer needs no permission of its
// own on brokers of version 2.8 or newer (KIP-679). create adds the permissions to create
// topics.
func pipelineACLs(t *topology.Topology, pl *topology.Pipeline, create bool) (acls aclList) {
	topics := append(append([]*topology.Topic{pl.From}, pl.SideTopics()...), pl.Writes()...)
	acls.add("Read", "topic", pl.From.Name, "events")
	for _, to := range pl.Writes() {
		acls.write(to.Name, "output")
	}
	acls.write(pl.DeadLetter.Name, "dead letters")
	if pl.Receipts != nil {
		acls.write(pl.Receipts.Name, "receipts")
	}
	for _, table := range chain.TablesOf(t, pl) {
		if table.Topic != nil {
			acls.add("Read", "topic", table.Topic.Name, "table "+table.Name)
			topics = append(topics, table.Topic)
		}
	}
	names := []string{}
	for _, topic := range topics {
		names = append(names, topic.Name)
	}
	for _, s := range chain.StateTopics(t, pl, 0) {
		acls.add("Read", "topic", s.Name, "state")
		acls.add("Write", "topic", s.Name, "state")
		acls.add("Delete", "topic", s.Name, "delete old records of the state")
		names = append(names, s.Name)
	}
	group := t.Name + "-" + pl.Name
	acls.add("Read", "group", group, "group membership and offsets")
	if pl.Guarantee == topology.ExactlyOnce {
		acls = append(acls, acl{Operation: "Write", Resource: "transactional-id", Name: group + "-", Pattern: "prefixed", For: "transactions of all instances"})
	}
	if create {
		for _, name := range names {
			acls.add("Create", "topic", name, "create it if it does not exist")
		}
	}
	return acls
}

// printACLs prints commands that grant the permissions of all pipelines.
func (x *explainer) printACLs(out explanation) error {
	brokers := strings.Join(x.worker.Kafka.Brokers, ",")
	brokers = cmp.Or(brokers, x.env.Getenv(properties.EnvName("brokers")), properties.DefaultBroker)
	type resource struct{ kind, name, pattern string }
	var order []resource
	operations := map[resource][]string{}
	for _, pl := range out.Pipelines {
		for _, a := range pl.ACLs {
			r := resource{a.Resource, a.Name, a.Pattern}
			if operations[r] == nil {
				order = append(order, r)
			}
			if !slices.Contains(operations[r], a.Operation) {
				operations[r] = append(operations[r], a.Operation)
			}
		}
	}
	p := cli.Printer{Out: x.env.Stdout}
	for _, r := range order {
		line := "kafka-acls.sh --bootstrap-server " + shellWord(brokers) + " --add --allow-principal " + shellWord(x.principal)
		for _, operation := range operations[r] {
			line += " --operation " + operation
		}
		line += " --" + r.kind + " " + shellWord(r.name)
		if r.pattern == "prefixed" {
			line += " --resource-pattern-type prefixed"
		}
		p.Line("%s", line)
	}
	return p.Err
}

// shellWord quotes a text as one word of a POSIX shell.
func shellWord(text string) string {
	plain := strings.IndexFunc(text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.,:/=@%+", r)
	}) < 0
	if plain && text != "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
