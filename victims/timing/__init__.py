"""Networks that compute with the times of spikes, and static images coded as spike times."""
