package processor

// Exported for tests in package processor_test.
type (
	ACL         = acl
	Explanation = explanation
)
