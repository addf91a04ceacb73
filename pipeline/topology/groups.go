package topology

// Group returns the consumer group of a pipeline.
func (t *Topology) Group(p *Pipeline) string { return t.Name + "-" + p.Name }

// SideTopics returns the topics that a pipeline writes in addition to its
// output: dead letters, and receipts if it has them.
func (p *Pipeline) SideTopics() []*Topic {
	topics := []*Topic{p.DeadLetter}
	if p.Receipts != nil {
		topics = append(topics, p.Receipts)
	}
	return topics
}
