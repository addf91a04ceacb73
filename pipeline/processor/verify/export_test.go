package verify

// Exported for tests in package verify_test.
var VolatileFields = volatileFields
